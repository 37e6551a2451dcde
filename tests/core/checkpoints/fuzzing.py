"""What a corrupted checkpoint may do: be compressed, or be refused with nothing left behind."""

import shutil
from contextlib import suppress
from pathlib import Path

import rankfold as rf
from rankfold.checkpoints.reader import Checkpoint

POLICY = rf.Ratio(0.5)


def harmless(source: Path, folder: Path, **settings: object) -> None:
    """Compresses a checkpoint; anything but a result or a `RankfoldError` is raised.

    Args:
        source: the checkpoint.
        folder: an empty one, which is emptied again.
        settings: of `compress_checkpoint`.
    """
    out = folder / "out"
    compressed = False
    with suppress(rf.RankfoldError):
        rf.compress_checkpoint(source, out, POLICY, methods=["svd"], **settings)
        compressed = True
    left = [file.name for file in folder.iterdir()]
    assert left == (["out"] if compressed else []), left
    if compressed:
        Checkpoint(out)
        shutil.rmtree(out)
