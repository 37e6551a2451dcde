"""Where an unfinished result lies: beside the folder to be, under a name of its own, locked.

A killed run leaves its plan and its finished files there, each with a record of its content, and
the next run of the same job goes on from them. The result appears under its own name when it is
complete, by renaming. Nothing that lies there is trusted: notes carry a seal, files their hash.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from rankfold.checkpoint import check_replaceable, saved_at
from rankfold.errors import RankfoldError
from rankfold.files import sha256_of, sync, write_whole
from rankfold.plan import Plan
from rankfold.stored.writing import Done, UnfinishedError

T = TypeVar("T")
_LOCK = "lock"
_JOB = "job.json"
PLANNED = "plan.json"
"""The name of the note with the plan."""
_OLD = "old"
_TRIES = 10
_MOST = 256 * 2**20


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A note and the hash of it, its name and its job."""

    seal: str
    value: msgspec.Raw


class Workplace:
    """The folder of one unfinished result.

    Args:
        folder: its place.
        job: tells one job from another.

    Attributes:
        files: where the files of the result go; a worker of another job that outlived it does not
            find the way there.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self._folder = folder
        self._job = job
        self.files = folder / f"new-{job[:16]}"
        self._records = folder / "done"

    def read(self, name: str, kind: type[T]) -> T | None:
        """What `note` noted for this job; None where it did not."""
        found = self._note(name)
        if found is None or found.seal != self._seal(name, bytes(found.value)):
            return None
        return _decoded(found.value, kind)

    def note(self, name: str, value: object) -> None:
        """Notes something, whole or not at all."""
        content = msgspec.json.encode(value)
        sealed = _Sealed(self._seal(name, content), msgspec.Raw(content))
        write_whole(self._folder / name, msgspec.json.encode(sealed))

    def finished(self, file: str) -> Done | None:
        """The record of a file that is complete and as it was written.

        None for any other, which is deleted.
        """
        done = self.read(f"done/{file}.json", Done)
        path = self.files / file
        plain = path.is_file() and not path.is_symlink()
        if plain and done is not None and done.file == file and sha256_of(path) == done.sha256:
            return done
        _delete(path)
        return None

    def finish(self, done: Done) -> None:
        """Records a finished file."""
        self.note(f"done/{done.file}.json", done)

    @property
    def started(self) -> bool:
        """Whether anything is finished."""
        return self._records.is_dir() and any(self._records.iterdir())

    @property
    def planned(self) -> bool:
        """Whether a plan is made."""
        return self.read(PLANNED, Plan) is not None

    def begin(self, output: Path) -> None:
        """Takes up the work of an earlier run of this job, or makes room for it.

        Raises:
            RankfoldError: an unfinished run is of another job.
            OSError: the folder cannot be written.
        """
        if output.exists():
            _delete(self._folder / _OLD)
        else:
            self._put_back(output)
        begun = self._begun()
        if begun not in (None, self._job) and self.started:
            before = saved_at(output)
            if before is None or before.job != begun:
                raise RankfoldError(
                    f"{str(self._folder)!r} holds an unfinished run with another checkpoint or "
                    "other settings; repeat that run to finish it, or delete that folder"
                )
        if begun != self._job:
            self.clear()
            self.note(_JOB, self._job)
        for folder in (self.files, self._records):
            if folder.is_symlink() or not folder.is_dir():
                _delete(folder)
                folder.mkdir()
        for file in self.files.glob("*.part"):
            _delete(file)

    def publish(self, output: Path, names: set[str]) -> None:
        """Gives the files their place; an earlier result there is replaced as a whole.

        Args:
            output: the place.
            names: of the files; any other one is deleted.

        Raises:
            RankfoldError: something else has come to be in that place.
            OSError: the files cannot be renamed.
        """
        check_replaceable(output)
        for file in self.files.iterdir():
            if file.name not in names:
                _delete(file)
        sync(self.files)
        old = self._folder / _OLD
        if output.exists():
            output.rename(old)
        try:
            self.files.rename(output)
        except OSError:
            self._put_back(output)
            raise
        sync(output.parent)

    def clear(self) -> None:
        """Removes everything but the lock."""
        for entry in sorted(self._folder.iterdir(), key=lambda entry: entry.name == _JOB):
            if entry.name != _LOCK:
                _delete(entry)

    def _put_back(self, output: Path) -> None:
        """An earlier result, where a run was killed between the two renamings."""
        old = self._folder / _OLD
        if old.is_dir() and not old.is_symlink() and not output.exists():
            old.rename(output)

    def _begun(self) -> str | None:
        """The job that was begun here."""
        found = self._note(_JOB)
        job = None if found is None else _decoded(found.value, str)
        return None if job is None else Workplace(self._folder, job).read(_JOB, str)

    def _note(self, name: str) -> _Sealed | None:
        file = self._folder / name
        try:
            if file.is_symlink() or not file.is_file() or file.stat().st_size > _MOST:
                return None
            return _decoded(file.read_bytes(), _Sealed)
        except OSError:
            return None

    def _seal(self, name: str, content: bytes) -> str:
        return hashlib.sha256(f"{self._job}\n{name}\n".encode() + content).hexdigest()


@contextmanager
def workplace(output: Path, job: str) -> Iterator[Workplace]:
    """The workplace of a result, locked.

    It is removed at the end, unless the run has failed and files are finished there, or a plan and
    it was not the plan or the checkpoint that failed.

    Args:
        output: the folder to be.
        job: tells one job from another.

    Raises:
        RankfoldError: another run is at it, an unfinished one is of another job, or the folder
            cannot be written.
    """
    folder = work_folder(output)
    made = [parent for parent in output.parents if not parent.exists()]
    lock = None
    kept = False
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder, output)
        place = Workplace(folder, job)
        try:
            place.begin(output)
            yield place
        except BaseException as error:
            wrong = isinstance(error, RankfoldError) and not isinstance(error, UnfinishedError)
            kept = place.started or (place.planned and not wrong)
            raise
        finally:
            if not kept:
                with suppress(OSError):
                    place.clear()
    except OSError as error:
        raise RankfoldError(f"cannot write to {str(folder)!r}: {error}") from None
    finally:
        if lock is not None:
            with suppress(OSError):
                if not kept:
                    (folder / _LOCK).unlink()
                    folder.rmdir()
            lock.release()
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def work_folder(output: Path) -> Path:
    """Where the work on a result lies until it is finished."""
    return output.parent / f".{output.name}.rankfold"


def _locked(folder: Path, output: Path) -> Any:
    """A lock on a folder, which is made if need be.

    Its last owner removes lock and folder before it lets go of them, so both are made anew then.
    """
    from filelock import FileLock, Timeout

    if folder.is_symlink() or (folder / _LOCK).is_symlink():
        raise RankfoldError(f"{str(folder)!r} or its lock is a link; remove it")
    for attempt in range(_TRIES):
        try:
            folder.mkdir(exist_ok=True)
            lock = FileLock(folder / _LOCK, timeout=0)
            lock.acquire()
        except Timeout:
            raise RankfoldError(
                f"another run is writing to {str(output)!r} just now; wait for it or name another "
                "folder"
            ) from None
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
        else:
            return lock
    raise AssertionError


def _decoded(text: bytes | msgspec.Raw, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
