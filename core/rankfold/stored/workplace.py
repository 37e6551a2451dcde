"""Where an unfinished result lies: beside the folder to be, under a name of its own, locked.

A killed run leaves its plan and its finished files there, each with a record of its content, and
the next run of the same job goes on from them. The result appears under its own name when it is
complete, by renaming.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from rankfold.errors import RankfoldError
from rankfold.stored.writing import Done, sha256_of

T = TypeVar("T")


class Workplace:
    """The folder of one unfinished result.

    Attributes:
        files: where the files of the result go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files = folder / "new"
        self._records = folder / "done"

    def read(self, name: str, kind: type[T]) -> T | None:
        """What `note` noted; None where it did not."""
        try:
            return msgspec.json.decode((self._folder / name).read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def note(self, name: str, value: object) -> None:
        """Notes something, whole or not at all."""
        self._folder.joinpath(name).parent.mkdir(exist_ok=True)
        write_whole(self._folder / name, msgspec.json.encode(value))

    def finished(self, file: str) -> Done | None:
        """The record of a file that is complete and as it was written; None for any other."""
        done = self.read(f"done/{file}.json", Done)
        path = self.files / file
        if done is None or path.is_symlink() or not path.is_file():
            return None
        return done if done.file == file and sha256_of(path) == done.sha256 else None

    def finish(self, done: Done) -> None:
        """Records a finished file."""
        self.note(f"done/{done.file}.json", done)

    @property
    def started(self) -> bool:
        """Whether anything is finished."""
        return self._records.is_dir() and any(self._records.iterdir())

    def publish(self, output: Path) -> None:
        """Gives the files their place; an earlier result there is replaced as a whole."""
        for file in self.files.glob("*.part"):
            file.unlink()
        sync(self.files)
        old = self._folder / "old"
        if output.exists():
            output.rename(old)
        try:
            self.files.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
        sync(output.parent)

    def remove(self) -> None:
        """Removes what is left."""
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def workplace(output: Path, job: str) -> Iterator[Workplace]:
    """The workplace of a result, locked.

    Args:
        output: the folder to be.
        job: tells one job from another.

    Raises:
        RankfoldError: another run is at it, an unfinished one is of another job, or the folder
            cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = output.parent / f".{output.name}.rankfold"
    place = Workplace(folder)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise RankfoldError(f"{str(folder)!r} is a link; remove it")
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RankfoldError(
            f"another run is writing to {str(output)!r} just now; wait for it or name another "
            "folder"
        ) from None
    except OSError as error:
        raise RankfoldError(f"cannot write to {str(output.parent)!r}: {error}") from None
    try:
        if not folder.joinpath("lock").exists():  # its last owner has just finished
            raise RankfoldError(f"another run has just written {str(output)!r}; run this one again")
        begun = place.read("job.json", str)
        if begun not in (None, job) and place.started:
            raise RankfoldError(
                f"{str(folder)!r} holds an unfinished run with another checkpoint or other "
                "settings; repeat that run to finish it, or delete that folder"
            )
        if begun != job:
            for part in ("plan.json", "job.json"):
                folder.joinpath(part).unlink(missing_ok=True)
            shutil.rmtree(place.files, ignore_errors=True)
            place.note("job.json", job)
        place.files.mkdir(exist_ok=True)
        for file in place.files.glob("*.part"):
            file.unlink()
        yield place
    except OSError as error:
        raise RankfoldError(f"cannot write to {str(folder)!r}: {error}") from None
    finally:
        if not place.started:
            place.remove()
        lock.release()


def write_whole(file: Path, content: bytes) -> None:
    """Writes a small file, whole or not at all."""
    fresh = file.with_name(f"{file.name}.fresh")
    try:
        with fresh.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Sees to it that what was written is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
