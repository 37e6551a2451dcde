"""Runs that are killed, anywhere: the next ones end with the result of a run that was not."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.core.checkpoints.files import contents, sharded
from tests.core.checkpoints.killing import CASES, before_each_call

import rankfold as rf
from rankfold.checkpoints import shards as writing
from rankfold.checkpoints import workdir as workplaces
from rankfold.checkpoints.reader import Checkpoint

POLICY = rf.Ratio(0.4)
SCRIPT = """
import os, sys
import rankfold as rf
from rankfold.cli.executors import opened

source, out, executor = sys.argv[1:]
if __name__ == "__main__":
    print("ready", flush=True)
    with opened(executor or None) as pool:
        rf.compress_checkpoint(source, out, rf.Ratio(0.4), executor=pool)
    print("done", flush=True)
"""


def started(source: Path, out: Path, script: Path, executor: str = "") -> subprocess.Popen[str]:
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(source), str(out), executor],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(("executor", "kills"), [("", 3), ("processes:2", 2)])
def test_runs_killed_at_any_time_end_as_one_that_was_not(
    tmp_path: Path, executor: str, kills: int
) -> None:
    source = sharded(tmp_path / "source", files=5, layers=2, shape=(150, 200))
    rf.compress_checkpoint(source, tmp_path / "expected", POLICY)
    out, work = tmp_path / "out", tmp_path / ".out.rankfold"
    rf.compress_checkpoint(source, out, rf.Ratio(0.9))  # an earlier result, in its place
    rng, known, killed, length = random.Random(0), {}, 0, 0.5
    for _ in range(kills):
        run = started(source, out, tmp_path / "run.py", executor)
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        begin = time.monotonic()
        try:
            run.wait(rng.uniform(0.0, length))
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            killed += 1
        run.stdout.close()
        run.wait()
        records = {file: file.stat() for file in work.glob("done/*.json")}
        for file, (inode, changed) in known.items():
            if file in records:  # what was finished is not done again
                assert (records[file].st_ino, records[file].st_mtime_ns) == (inode, changed)
        known = {file: (stat.st_ino, stat.st_mtime_ns) for file, stat in records.items()}
        if run.returncode == 0:
            length = max(0.05, time.monotonic() - begin)
            assert contents(out) == contents(tmp_path / "expected")
            rf.compress_checkpoint(source, out, rf.Ratio(0.9))
            known = {}
    assert killed
    rf.compress_checkpoint(source, out, POLICY)
    assert contents(out) == contents(tmp_path / "expected")
    assert not work.exists()


class Killed(BaseException):
    """Nothing is tidied up behind it."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
@pytest.mark.parametrize("case", CASES)
def test_a_job_killed_at_any_call_of_the_system_does_no_harm(tmp_path: Path, case: str) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.core.checkpoints.killing", str(tmp_path), case]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 10


def lines_of_rankfold() -> tuple[tuple[str, int], ...]:
    """Those that have led to a call."""
    lines, frame = [], sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("rankfold."):
            lines.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return tuple(lines)


def one_of_each(lines: list[tuple[tuple[str, int], ...]]) -> list[int]:
    """The numbers of some calls, of each line one: the first and the last by turns."""
    first = {line: number for number, line in reversed([*enumerate(lines, 1)])}
    last = {line: number for number, line in enumerate(lines, 1)}
    return sorted((first, last)[turn % 2][line] for turn, line in enumerate(first))


@pytest.mark.parametrize("pick", [one_of_each, pytest.param(None, marks=pytest.mark.slow)])
def test_a_call_of_the_system_that_fails_is_an_error_and_leaves_what_was_there(
    tmp_path: Path, pick
) -> None:
    source = sharded(tmp_path / "source", files=2, layers=1)
    before = contents(source)
    rf.compress_checkpoint(source, tmp_path / "expected", POLICY)
    rf.compress_checkpoint(source, tmp_path / "old", rf.Ratio(0.9))
    expected, old = contents(tmp_path / "expected"), contents(tmp_path / "old")
    lines = []
    shutil.copytree(tmp_path / "old", tmp_path / "rehearsal")
    with before_each_call(lambda: lines.append(lines_of_rankfold())):
        rf.compress_checkpoint(source, tmp_path / "rehearsal", POLICY)
    numbers = range(1, len(lines) + 1) if pick is None else pick(lines)
    for last in numbers:
        folder = tmp_path / str(last)
        out = folder / "out"
        shutil.copytree(tmp_path / "old", out)
        count = 0

        def fail(last: int = last) -> None:
            nonlocal count
            count += 1
            if count == last:
                raise OSError(errno.EIO, "input/output error")

        with before_each_call(fail), suppress(rf.RankfoldError):
            rf.compress_checkpoint(source, out, POLICY)
        assert count >= last
        assert contents(out) in (old, expected)
        rf.compress_checkpoint(source, out, POLICY)
        assert contents(out) == expected
        assert list(folder.iterdir()) == [out], last
    assert len(numbers) > 20
    assert contents(source) == before


@pytest.mark.parametrize(
    "policy",
    [POLICY, rf.Energy(0.7), rf.VBMF(), rf.Ranks(3), rf.Ranks("full"), rf.Budget(params=0.5)],
    ids=repr,
)
def test_a_layer_that_cannot_be_read_is_an_error_whoever_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: object
) -> None:
    source = sharded(tmp_path / "source", files=1, layers=2)
    read, count, last = Checkpoint.array, 0, 0

    def failing(self: Checkpoint, name: str):
        nonlocal count
        count += 1
        if count == last:
            raise rf.RankfoldError(f"{name!r} cannot be read")
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "array", failing)
    rf.compress_checkpoint(source, tmp_path / "whole", policy)
    reads = count
    for last in range(1, reads + 1):
        count = 0
        with pytest.raises(rf.RankfoldError, match="cannot be read"):
            rf.compress_checkpoint(source, tmp_path / str(last), policy)
    assert reads >= 4


def test_nothing_is_taken_for_finished_that_was_only_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sharded(tmp_path / "source", files=3, layers=1)
    out = tmp_path / "out"

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(writing._Fresh, "finish", killed)
        with pytest.raises(Killed):
            rf.compress_checkpoint(source, out, POLICY)
    assert not out.exists()
    assert not list((tmp_path / ".out.rankfold").glob("done/*.json"))
    with monkeypatch.context() as patched:
        patched.setattr(workplaces.Workdir, "publish", killed)
        with pytest.raises(Killed):
            rf.compress_checkpoint(source, out, POLICY)
    assert not out.exists()
    assert len(list((tmp_path / ".out.rankfold").glob("done/*.json"))) == 3


def test_a_plan_that_was_made_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sharded(tmp_path / "source", files=1)
    out = tmp_path / "out"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writing._Fresh, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rf.compress_checkpoint(source, out, POLICY)
    from rankfold.checkpoints import planning

    with monkeypatch.context() as patched:
        patched.setattr(planning, "planned", interrupted)
        rf.compress_checkpoint(source, out, POLICY)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "source"]
