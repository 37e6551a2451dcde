"""The hidden folder beside an output in which it is made: one name, one owner, locked while in use.

What a process that was killed leaves there is found by the next one that makes the same output. The
lock is gone with the process that holds it, so nothing that is in use is taken for a leftover.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rankfold.errors import RankfoldError
from rankfold.state.restoration import Restored
from rankfold.storage.files import sync

LOCK = "lock"
SAVING = "new"
"""The name of a folder about to become the output; one that is found there is a leftover."""
_OLD = "old"
_PROBE = "owner."
"""How the names of files begin that are made to see whose they are."""
_TRIES = 100
"""Rounds of losing the folder to another owner that has just finished; each takes a whole run."""
_LONGEST_NAME = 255
"""Bytes in a name, the limit of the usual file systems (NAME_MAX)."""
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def work_folder(output: Path) -> Path:
    """Return the folder in which an output is made until it is finished."""
    # Beside the output and not in a folder for temporary files: only within one file system can it
    # take its place by renaming. The name follows from the output's, so the next run finds it.
    name = f".{output.name}.rankfold"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(output.name)).hexdigest()}.rankfold"
    return output.parent / name


@contextmanager
def claimed(output: Path, patience: float = 0.0) -> Iterator[Path]:
    """Claim the work folder of an output, made if need be and locked.

    It is removed at the end where nothing is left in it, with parents that were made for it. An
    earlier output that `publish` has put aside is back in its place, or deleted where there is a
    new one.

    Args:
        output: the folder to be.
        patience: seconds to wait for another process or thread that makes the same output.

    Raises:
        RankfoldError: another one is at it, the folder is somebody else's, or it cannot be written.
    """
    folder = work_folder(output)
    if _is_foreign(folder):  # in a folder like /tmp the caller could not even remove it
        folder = folder.with_name(f"{folder.name}.{os.geteuid()}")
    claim = _Claim(folder, output)
    with Restored(claim.release):
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            claim.take(time.monotonic() + patience)
            _settle(folder, output)
            yield folder
        except OSError as error:
            raise RankfoldError(f"cannot write to {str(output)!r}: {error}") from None


def publish(fresh: Path, output: Path) -> None:
    """Give a folder its place; an earlier one there is replaced as a whole.

    Args:
        fresh: within the folder that `claimed` gave for the output.
        output: the place.

    Raises:
        OSError: the folders cannot be renamed.
    """
    # Two renamings, since a folder that is not empty cannot be replaced in one step. A kill between
    # them leaves the earlier output under _OLD and none in its place; `_settle` then puts it back.
    # The contents are synced before and the parent after, or a power cut could keep the new name
    # and lose what it stands for.
    sync(fresh)
    if output.exists():
        output.rename(fresh.parent / _OLD)
    fresh.rename(output)
    sync(output.parent)


def delete(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _settle(folder: Path, output: Path) -> None:
    """Undo what a process was killed at, between two renamings or before them."""
    old = folder / _OLD
    # Whatever is under the output's name is whole, so the one put aside is no longer needed. Where
    # there is none, the kill came between the two renamings of `publish`.
    if output.exists():
        delete(old)
    elif old.is_dir() and not old.is_symlink():
        old.rename(output)
    delete(folder / SAVING)
    for probe in folder.glob(f"{_PROBE}*"):
        delete(probe)


class _Claim:
    """A lock on a work folder.

    Its owner removes lock and folder before it lets go of them. So both may have to be made anew,
    and a lock that was won may be of a file that is gone: it is not, if the file in its place is
    the same as before. (A number of an inode is not given away while the file is open.)

    Args:
        folder: to be made, if need be.
        output: the folder to be, whose missing parents are made for it.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self._folder = folder
        self._output = output
        self._missing_parents = [parent for parent in output.parents if not parent.exists()]
        self._lock: Any = None
        self._inode = 0

    def take(self, until: float) -> None:
        """Wait for the lock until a time of `time.monotonic`.

        Raises:
            RankfoldError: another one has it, or the folder is not the caller's own.
            OSError: the folder cannot be made.
        """
        # The owner before may remove the lock file, and the folder, between any two lines here. A
        # lock on a file that is gone excludes nobody: the next process makes a new file and locks
        # that. So the inode is read before the lock is taken and compared after it; if they differ
        # the round begins anew.
        from filelock import FileLock, Timeout

        for attempt in range(_TRIES):
            try:
                self._folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
                _check_owned(self._folder)
                self._inode = _lock_file(self._folder / LOCK)
                self._lock = FileLock(self._folder / LOCK)
                self._lock.acquire(timeout=max(0.0, until - time.monotonic()))
            except Timeout:
                raise RankfoldError(
                    f"another run is writing to {str(self._output)!r} just now; wait for it or "
                    "name another folder"
                ) from None
            except FileNotFoundError:
                if attempt == _TRIES - 1:
                    raise
                continue
            if self._is_taken():
                return
            self._lock.release()
        raise OSError("others make and remove it all the time")

    def release(self) -> None:
        """Remove what is empty and let go; also after an interrupt at any line, and twice."""
        with suppress(OSError, RankfoldError):
            if not self._is_taken() and (self._folder / LOCK).exists():
                self.take(0.0)  # the interrupt came while it was being taken
            if self._is_taken():
                _settle(self._folder, self._output)
                if [entry.name for entry in self._folder.iterdir()] == [LOCK]:
                    (self._folder / LOCK).unlink()
        # `rmdir` removes empty folders only, from the innermost outwards: what others have put into
        # a parent meanwhile keeps it.
        for empty in (self._folder, *self._missing_parents):
            with suppress(OSError):
                empty.rmdir()
        if self._lock is not None:
            self._lock.release()

    def _is_taken(self) -> bool:
        """Return whether the lock is held, and is of the file that lies there."""
        with suppress(OSError, RankfoldError):
            locked = self._lock is not None and self._lock.is_locked
            return locked and (self._folder / LOCK).lstat().st_ino == self._inode
        return False


def _lock_file(file: Path) -> int:
    """Make the lock file if need be, never through a link, and return its inode."""
    # "x" fails where anything lies, a link included; opening in another mode would follow the link.
    with suppress(FileExistsError):
        file.open("xb").close()
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise RankfoldError(f"{str(file)!r} is a link or no plain file; remove it")
    return status.st_ino


def _check_owned(folder: Path) -> None:
    """Check that a work folder belongs to the caller and that no other user can write to it.

    Raises:
        RankfoldError: it is not: whoever made it decides what is in it.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise RankfoldError(f"{str(folder)!r} is a link or no folder; remove it")
    if _is_foreign(folder):
        raise RankfoldError(
            f"{str(folder)!r} is of another owner, so what lies there is not trusted; have it "
            "removed, or name another output"
        )
    if os.name == "posix" and status.st_mode & _OTHERS:
        raise RankfoldError(
            f"{str(folder)!r} can be written by others, so what lies there is not trusted; remove "
            "it, or name another output"
        )


def _is_foreign(folder: Path) -> bool:
    """Return whether a folder is there that this process has not made, nor one of the same user."""
    try:
        owner = folder.lstat().st_uid
    except OSError:
        return False
    if os.name != "posix" or owner == os.geteuid():
        return False
    return owner != _owner_of_files_in(folder)


def _owner_of_files_in(folder: Path) -> int | None:
    """Return the owner that a file made there gets; some network file systems map all users."""
    if folder.is_symlink():
        return None
    # A server may map all users, or root, to one: the uid of this process is then not that of its
    # files.
    probe = folder / f"{_PROBE}{secrets.token_hex(8)}"
    try:
        with probe.open("xb") as stream:
            return os.fstat(stream.fileno()).st_uid
    except OSError:
        return None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
