"""Kills jobs at every call of the system that finds other files than the call before it.

A program of its own, because it forks. A kill at any other call would leave the same files as one
at the next that counts.
"""

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.core.checkpoints.files import contents, sharded

import rankfold as rf

POLICY, OTHER = rf.Ratio(0.4), rf.Ratio(0.6)
CALLS = [
    *((os, name) for name in ("replace", "rename", "fsync", "open", "mkdir", "unlink", "rmdir")),
    (os, "posix_fallocate"),
    (io, "open"),
]
Job = Callable[[], object]


@contextmanager
def before_each_call(act: Job) -> Iterator[None]:
    """Does something before each of the calls, except for calls of its own."""
    acting = False

    def wrapped(call):
        def wrapper(*arguments, **keywords):
            nonlocal acting
            if not acting:
                acting = True
                try:
                    act()
                finally:
                    acting = False
            return call(*arguments, **keywords)

        return wrapper

    calls = [(module, name, getattr(module, name)) for module, name in CALLS]
    for module, name, call in calls:
        setattr(module, name, wrapped(call))
    try:
        yield
    finally:
        for module, name, call in calls:
            setattr(module, name, call)


def calls_with_other_files(job: Job, folder: Path) -> list[int]:
    """The numbers of the calls that find other files in a folder than the call before.

    The one behind the last call is among them: there nothing is killed.
    """
    states: list[object] = [None]

    def look() -> None:
        states.append((sorted(folder.rglob("*")), contents(folder)))

    with before_each_call(look):
        job()
    changes = [n for n in range(1, len(states)) if states[n] != states[n - 1]]
    return [*changes, len(states)]


def killed(job: Job, last: int) -> None:
    """Runs a job in a child that is killed at its n-th call."""
    child = os.fork()
    if child == 0:
        count, code = 0, 1

        def kill() -> None:
            nonlocal count
            count += 1
            if count == last:
                os._exit(9)

        try:
            with before_each_call(kill):
                job()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), code


class Compression:
    """A checkpoint that is compressed to where an earlier result is."""

    def __init__(self, folder: Path) -> None:
        self.source = sharded(folder / "source", files=2, layers=1)
        self.before = contents(self.source)
        rf.compress_checkpoint(self.source, folder / "expected", POLICY)
        rf.compress_checkpoint(self.source, folder / "earlier", OTHER)
        self.earlier = folder / "earlier"
        self.expected = contents(folder / "expected")

    def prepare(self, out: Path) -> None:
        """Puts the earlier result in place."""
        shutil.copytree(self.earlier, out)

    def run(self, out: Path) -> None:
        """The job."""
        rf.compress_checkpoint(self.source, out, POLICY)

    def check(self, out: Path) -> None:
        """What holds after a kill."""
        if out.exists():
            assert contents(out) in (contents(self.earlier), self.expected)
        assert contents(self.source) == self.before


class Fresh(Compression):
    """A checkpoint that is compressed to where nothing is, and another job before it is again."""

    def prepare(self, out: Path) -> None:
        """Nothing."""

    def check(self, out: Path) -> None:
        """The other job is refused where files of the killed one are finished."""
        try:
            rf.compress_checkpoint(self.source, out, OTHER)
        except rf.RankfoldError:
            assert any(out.with_name(".out.rankfold").glob("done/*"))
            assert not out.exists()
        assert contents(self.source) == self.before


class Saving:
    """A model that is saved to where it has been saved before."""

    def __init__(self, folder: Path) -> None:
        from torch import nn

        self.small = rf.compress(nn.Sequential(nn.Linear(24, 40)), rf.Ranks(3))
        self.small.save(folder / "expected")
        self.expected = contents(folder / "expected")

    def prepare(self, out: Path) -> None:
        """Saves it."""
        self.small.save(out)

    def run(self, out: Path) -> None:
        """The job."""
        self.small.save(out)

    def check(self, out: Path) -> None:
        """What holds after a kill."""
        assert len(list(out.parent.iterdir())) <= 2
        if out.exists():
            assert contents(out) == self.expected


CASES = {"finished_by_the_next": Compression, "gives_way": Fresh, "saved": Saving}


def main(folder: Path, name: str) -> None:
    """Prints how often the job was killed."""
    os.fsync = os.fstat  # a process that is killed loses nothing that it has handed over
    case = CASES[name](folder)
    for rehearsal in ("warm", "rehearsal"):  # what is imported on the way is no call of the job
        out = folder / rehearsal / "out"
        out.parent.mkdir()
        case.prepare(out)
        kills = calls_with_other_files(lambda out=out: case.run(out), out.parent)
    for last in kills:
        out = folder / str(last) / "out"
        out.parent.mkdir()
        case.prepare(out)
        killed(lambda out=out: case.run(out), last)
        case.check(out)
        case.run(out)
        assert contents(out) == case.expected
        assert list(out.parent.iterdir()) == [out], last
    print(len(kills))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
