"""Several runs into one folder."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.core.checkpoints.files import contents, sharded

import rankfold as rf
from rankfold.checkpoints import compress as compression
from rankfold.checkpoints import planning
from rankfold.checkpoints.workdir import open_workdir
from rankfold.storage.work_folder import work_folder

POLICY = rf.Ratio(0.4)
SLOW = """
import sys, time
import rankfold as rf
from rankfold.checkpoints import compress as compression

def slow(*arguments):
    print("writing", flush=True)
    time.sleep(60)

compression.write = slow
rf.compress_checkpoint(sys.argv[1], sys.argv[2], rf.Ratio(0.4))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return sharded(tmp_path / "source")


def test_the_second_of_two_is_refused_until_the_first_is_gone(source: Path, tmp_path: Path) -> None:
    rf.compress_checkpoint(source, tmp_path / "expected", POLICY)
    out = tmp_path / "out"
    first = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(source), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "writing\n"
        before = contents(work_folder(out))
        for policy in (POLICY, rf.Ratio(0.6)):
            with pytest.raises(rf.RankfoldError, match="another run is writing"):
                rf.compress_checkpoint(source, out, policy)
        assert contents(work_folder(out)) == before
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
    rf.compress_checkpoint(source, out, POLICY)
    assert contents(out) == contents(tmp_path / "expected")
    assert not work_folder(out).exists()


@pytest.mark.parametrize("content", [b"", b"12345", b"\0" * 1000])
def test_an_old_lock_does_no_harm(source: Path, tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    work_folder(out).mkdir()
    (work_folder(out) / "lock").write_bytes(content)
    rf.compress_checkpoint(source, out, POLICY)
    assert not work_folder(out).exists()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_a_lock_that_is_no_file_is_an_error_or_none(source: Path, tmp_path: Path, make) -> None:
    out = tmp_path / "out"
    work_folder(out).mkdir()
    make(work_folder(out) / "lock")
    try:
        rf.compress_checkpoint(source, out, POLICY)
    except rf.RankfoldError:
        assert not out.exists()


def test_threads_that_start_together_give_one_result(source: Path, tmp_path: Path) -> None:
    rf.compress_checkpoint(source, tmp_path / "expected", POLICY)
    expected = contents(tmp_path / "expected")
    for attempt in range(10):
        out = tmp_path / str(attempt)
        start = threading.Barrier(4)

        def run(out: Path = out, start: threading.Barrier = start) -> str:
            start.wait()
            try:
                rf.compress_checkpoint(source, out, POLICY)
            except rf.RankfoldError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(4) as pool:
            found = [future.result() for future in [pool.submit(run) for _ in range(4)]]
        assert "" in found
        assert all("another run" in text for text in found if text)
        assert contents(out) == expected
        assert not work_folder(out).exists()


RACING = """
import sys
import rankfold as rf

print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    try:
        rf.compress_checkpoint(sys.argv[1], sys.argv[2], rf.Ratio(float(sys.argv[4])))
    except rf.RankfoldError as error:
        if "another run" not in str(error) and "unfinished" not in str(error):
            raise
"""


def test_processes_that_race_for_one_folder_leave_a_whole_result(
    source: Path, tmp_path: Path
) -> None:
    shares = ("0.4", "0.6")
    for share in shares:
        rf.compress_checkpoint(source, tmp_path / share, rf.Ratio(float(share)))
    out = tmp_path / "out"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RACING, str(source), str(out), "25", share],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for share in (*shares, shares[0])
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        _, _ = run.stdin.write("\n"), run.stdin.flush()
    for run in runs:
        _, errors = run.communicate(timeout=60)
        assert run.returncode == 0, errors
    assert contents(out) in [contents(tmp_path / share) for share in shares]
    assert not work_folder(out).exists()


def test_a_run_that_starts_as_another_ends_takes_its_result(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = rf.compress_checkpoint(source, tmp_path / "first", POLICY)

    def late(folder: Path, job: str):
        if not folder.exists():  # just behind the look at what is there
            (tmp_path / "first").rename(folder)
        return open_workdir(folder, job)

    monkeypatch.setattr(compression, "open_workdir", late)
    monkeypatch.setattr(planning, "planned", None)
    assert rf.compress_checkpoint(source, out, POLICY) == first
    assert not work_folder(out).exists()


def test_a_failed_worker_is_waited_for_before_the_folder_is_given_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write, going = compression.write, []

    def failing(work, part):
        if "00001" in part.name:
            raise rf.RankfoldError("the first has failed")
        going.append(part.name)
        time.sleep(0.3)
        done = write(work, part)
        going.remove(part.name)
        return done

    monkeypatch.setattr(compression, "write", failing)
    with ThreadPoolExecutor(3) as pool:
        with pytest.raises(rf.RankfoldError, match="the first has failed"):
            rf.compress_checkpoint(source, out, POLICY, executor=pool)
        assert going == []
