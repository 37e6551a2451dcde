"""Files written so that a crash leaves them whole or not there."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path


def sha256_of(file: Path) -> str:
    """SHA-256 of the content of a file, as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush what was written to a file or a folder to the disk."""
    # A folder can be synced, too: only then is it certain that a name in it is on the disk.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(file: Path, content: bytes) -> None:
    """Write a small file, whole or not at all; never through a link that lies there."""
    # In the same folder, since a renaming within one file system is the step that cannot be seen
    # half done. "x" fails on a link that somebody put under the temporary name instead of following
    # it.
    fresh = file.with_name(f"{file.name}.fresh")
    fresh.unlink(missing_ok=True)
    try:
        with fresh.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
