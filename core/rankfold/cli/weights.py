"""The weights of a factory's model."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rankfold.checkpoints.reader import Checkpoint
from rankfold.errors import RankfoldError
from rankfold.plugins.registry import registry
from rankfold.storage.safetensors_header import header_bytes


def filled(model: Any, weights: Path, key: str | None) -> Any:
    """Return the model with the weights of a checkpoint.

    Args:
        model: of any framework with an adapter.
        weights: a file or a folder of tensors, of a kind that a plugin reads.
        key: of the state that is meant, where there are several.

    Raises:
        RankfoldError: it cannot be read, or is of another model; the whole of it must fit.
    """
    adapter = registry().adapter(model)
    if key is None and weights.is_file():
        return adapter.load_weights(model, weights)
    state = Checkpoint(weights, key=key)
    # Adapters read files of one state, so that a folder or a part of a file becomes such a file.
    with TemporaryDirectory(prefix="rankfold-") as folder:
        file = Path(folder) / "weights.safetensors"
        entries = {name: state.entry(name) for name in state.owner}
        with file.open("wb") as stream:
            stream.write(header_bytes({n: (e.dtype, e.shape) for n, e in entries.items()}, {}))
            for name in entries:
                for piece in state.pieces(name):
                    stream.write(piece.data)
        try:
            return adapter.load_weights(model, file)
        except RankfoldError as error:  # that file is none that the user knows
            raise RankfoldError(str(error).replace(repr(str(file)), repr(str(weights)))) from error
