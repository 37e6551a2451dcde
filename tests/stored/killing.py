"""Kills runs at every call of the system in turn; a program of its own, because it forks."""

import io
import os
import sys
from pathlib import Path

from tests.stored.files import contents, sharded

import rankfold as rf

POLICY, OTHER = rf.Ratio(0.4), rf.Ratio(0.6)
CALLS = [
    *((os, name) for name in ("replace", "rename", "fsync", "open", "mkdir", "unlink", "rmdir")),
    (os, "posix_fallocate"),
    (io, "open"),
]


def ended(work, last: int) -> bool:
    """Runs something in a child that is killed at its n-th call; whether it came to the end."""
    child = os.fork()
    if child == 0:
        count, code = 0, 1

        def counted(call):
            def wrapped(*arguments, **keywords):
                nonlocal count
                count += 1
                if count == last:
                    os._exit(9)
                return call(*arguments, **keywords)

            return wrapped

        try:
            for module, name in CALLS:
                setattr(module, name, counted(getattr(module, name)))
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), code
    return code == 0


def finished_by_the_next(source: Path, folder: Path, expected: dict[str, str], last: int) -> bool:
    """The same job again, where an earlier result is to be replaced."""
    out = folder / "out"
    rf.compress_checkpoint(source, out, OTHER)
    earlier = contents(out)
    whole = ended(lambda: rf.compress_checkpoint(source, out, POLICY), last)
    if out.exists():
        assert contents(out) in (earlier, expected)
    rf.compress_checkpoint(source, out, POLICY)
    return whole


def gives_way(source: Path, folder: Path, expected: dict[str, str], last: int) -> bool:
    """Another job first, which is refused where files of the killed one are finished."""
    out, work = folder / "out", folder / ".out.rankfold"
    whole = ended(lambda: rf.compress_checkpoint(source, out, POLICY), last)
    try:
        rf.compress_checkpoint(source, out, OTHER)
    except rf.RankfoldError:
        assert any(work.glob("done/*"))
        assert not out.exists()
    rf.compress_checkpoint(source, out, POLICY)
    return whole


def main(folder: Path, name: str) -> None:
    """Prints how many calls there are."""
    source = sharded(folder / "source", files=2, layers=1)
    before = contents(source)
    rf.compress_checkpoint(source, folder / "expected", POLICY)
    expected = contents(folder / "expected")
    for last in range(1, 1000):
        own = folder / str(last)
        own.mkdir()
        whole = globals()[name](source, own, expected, last)
        assert contents(own / "out") == expected
        assert [file.name for file in own.iterdir()] == ["out"]
        assert contents(source) == before
        if whole:
            break
    print(last)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
