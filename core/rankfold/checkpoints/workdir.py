"""The folder of an unfinished result: beside the output, under a name of its own, locked.

A killed run leaves its plan and its finished files there, each with a record of its content, and
the next run of the same job goes on from them. The result appears under its own name when it is
complete, by renaming. The seal of a note and the hash of a file tell what is damaged, cut short or
of another job. They are no proof against somebody who writes there on purpose:
`rankfold.storage.work_folder` keeps everybody else out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from rankfold.checkpoints.shards import Done
from rankfold.errors import RankfoldError, UnfinishedError
from rankfold.plan.plan import Plan
from rankfold.storage import work_folder as claims
from rankfold.storage.files import sha256_of, write_whole
from rankfold.storage.saved_plan import check_replaceable, saved_at
from rankfold.storage.work_folder import LOCK, claimed, delete

T = TypeVar("T")
_JOB = "job.json"
PLANNED = "plan.json"
"""The name of the note with the plan."""
# A note is read as a whole, so that a huge file in its place must not be.
_MOST = 256 * 2**20


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that makes a result of a checkpoint.

    Attributes:
        key: tells one job from another.
        source: where the checkpoint lies.
        content: what it holds, as a hash.
    """

    key: str
    source: str
    content: str


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A note and the hash of it, its name and its job."""

    seal: str
    value: msgspec.Raw


class Workdir:
    """The folder of one unfinished result.

    Args:
        folder: its place.
        job: that is done there.

    Attributes:
        files: where the files of the result go; a worker of another job that outlived it does not
            find the way there.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self._folder = folder
        self._job = job
        self.files = folder / f"new-{job.key[:16]}"
        self._records = folder / "done"

    def read(self, name: str, kind: type[T]) -> T | None:
        """Return what `note` noted under a name for this job; None where it did not."""
        record = self._read(name, _Sealed)
        # The seal covers the job and the name, so a note of another job, or one renamed to another
        # file, is none; and a note cut short has no seal that fits.
        if record is None or record.seal != self._seal(name, bytes(record.value)):
            return None
        return _decoded(record.value, kind)

    def note(self, name: str, value: object) -> None:
        """Note a value under a name, whole or not at all."""
        content = msgspec.json.encode(value)
        sealed = _Sealed(self._seal(name, content), msgspec.Raw(content))
        write_whole(self._folder / name, msgspec.json.encode(sealed))

    def finished(self, file: str) -> Done | None:
        """Return the record of a file that is complete and as it was written.

        None for any other, which is deleted.
        """
        done = self.read(f"done/{file}.json", Done)
        path = self.files / file
        plain = path.is_file() and not path.is_symlink()
        # The hash decides: a file may have its full length and hold nothing, after a power cut.
        if plain and done is not None and done.file == file and sha256_of(path) == done.sha256:
            return done
        delete(path)
        return None

    def finish(self, done: Done) -> None:
        """Record a finished file."""
        self.note(f"done/{done.file}.json", done)

    @property
    def started(self) -> bool:
        """True if any file is finished."""
        return self._records.is_dir() and any(self._records.iterdir())

    @property
    def planned(self) -> bool:
        """True if a plan is made."""
        return self.read(PLANNED, Plan) is not None

    def begin(self, output: Path) -> None:
        """Take up the work of an earlier run of this job, or make room for it.

        Raises:
            RankfoldError: an unfinished run is of another job.
            OSError: the folder cannot be written.
        """
        begun = self._begun()
        # Finished files of another job are work that somebody may want. They are given up
        # only where that job has its result: it was killed after it had published.
        if begun is not None and self._is_another(begun) and self.started:
            before = saved_at(output)
            if before is None or before.job != begun.key:
                raise RankfoldError(
                    f"{str(self._folder)!r} holds an unfinished run with another checkpoint or "
                    "other settings; repeat that run to finish it, or delete that folder"
                )
        if begun is None or begun.key != self._job.key:
            self.clear()
        # The key says nothing of where the checkpoint lies, so a copy of it elsewhere goes on from
        # here; the note then names the copy.
        if begun != self._job:
            write_whole(self._folder / _JOB, msgspec.json.encode(self._job))
        # A link in their place would have the files written wherever it leads.
        for folder in (self.files, self._records):
            if folder.is_symlink() or not folder.is_dir():
                delete(folder)
                folder.mkdir()
        # Pieces of workers that were killed. None can be at work here still: the lock is ours, and
        # a run waits for its workers before it lets go.
        for file in self.files.glob("*.part"):
            delete(file)

    def publish(self, output: Path, names: set[str]) -> None:
        """Give the files their place; an earlier result there is replaced as a whole.

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
                delete(file)
        claims.publish(self.files, output)

    def clear(self) -> None:
        """Remove everything but the lock."""
        # The note of the job goes last. A kill on the way leaves files that still say whose they
        # are, and are not taken for those of the next job.
        for entry in sorted(self._folder.iterdir(), key=lambda entry: entry.name == _JOB):
            if entry.name != LOCK:
                delete(entry)

    def _is_another(self, begun: Job) -> bool:
        """Return whether a job can still be finished that is not this one.

        One of a checkpoint that has been exchanged since then cannot: its work is worth nothing.
        """
        exchanged = begun.source == self._job.source and begun.content != self._job.content
        return begun.key != self._job.key and not exchanged

    def _begun(self) -> Job | None:
        """Return the job that was begun here; None if there is none or its note is damaged."""
        return self._read(_JOB, Job)

    def _read(self, name: str, kind: type[T]) -> T | None:
        file = self._folder / name
        try:
            if file.is_symlink() or not file.is_file() or file.stat().st_size > _MOST:
                return None
            return _decoded(file.read_bytes(), kind)
        except OSError:
            return None

    def _seal(self, name: str, content: bytes) -> str:
        return hashlib.sha256(f"{self._job.key}\n{name}\n".encode() + content).hexdigest()


def keeps_work(output: Path) -> bool:
    """Return whether an interrupted run has left work that the next run of its job goes on from."""
    return (claims.work_folder(output) / _JOB).exists()


@contextmanager
def open_workdir(output: Path, job: Job) -> Iterator[Workdir]:
    """Open the folder of an unfinished result, locked, for as long as the context lasts.

    It is removed at the end, unless the run has failed and files are finished there, or a plan and
    it was not the plan or the checkpoint that failed.

    Args:
        output: the folder to be.
        job: that is to be done.

    Raises:
        RankfoldError: another run is at it, an unfinished one is of another job, or the folder
            cannot be written.
    """
    with claimed(output) as folder:
        workdir = Workdir(folder, job)
        kept = False
        try:
            workdir.begin(output)
            yield workdir
        except BaseException as error:
            # A plan without files is kept where the surroundings failed (a full disk, a dead
            # worker, Ctrl-C). Where rankfold itself refused, the next try would meet the same plan
            # and the same refusal.
            wrong = isinstance(error, RankfoldError) and not isinstance(error, UnfinishedError)
            kept = workdir.started or (workdir.planned and not wrong)
            raise
        finally:
            if not kept:
                with suppress(OSError):
                    workdir.clear()


def _decoded(text: bytes | msgspec.Raw, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
