"""Links of a Hugging Face cache: the files of a model lie in `blobs`, and `snapshots` link to them.

Links are refused elsewhere, because they lead anywhere. One from a snapshot to a blob of the same
model leads to where the cache keeps its files, and nowhere else. The layout is that of a place for
files, as safetensors is that of a file: models of any framework lie there.
"""

from __future__ import annotations

import os
from pathlib import Path

_SNAPSHOTS = "snapshots"
_BLOBS = "blobs"


def followed(file: Path) -> Path:
    """Return the blob that a link of a snapshot leads to; any other path as it is."""
    try:
        if not file.is_symlink():
            return file
        here = Path(os.path.abspath(file))  # noqa: PTH100 - resolve() would follow every link
        # By its text and not by what else lies on the way: what is opened in the end is a plain
        # file of the folder of blobs.
        target = Path(os.path.normpath(here.parent / file.readlink()))
        folder = next(path for path in here.parents if path.name == _SNAPSHOTS)
    except (OSError, ValueError, StopIteration):
        return file
    is_blob = target.parent == folder.parent / _BLOBS and not target.is_symlink()
    return target if is_blob and target.is_file() else file
