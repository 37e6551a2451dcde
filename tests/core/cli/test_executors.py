"""Worker processes: they end with the process that started them, and their death is an error."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from tests.core.checkpoints.files import contents, sharded

import rankfold as rf
from rankfold.storage.work_folder import work_folder

HOLDING = """
import os, sys, time
from rankfold.cli.signals import end_in_order
from rankfold.cli.executors import opened

if __name__ == "__main__":
    end_in_order()
    with opened("processes:1") as pool:
        worker = pool.submit(os.getpid).result()
        pool.submit(time.sleep, 60)
        print(worker, flush=True)
        while True:  # a signal just before a long sleep begins is only seen at its end
            time.sleep(0.05)
"""


def gone(process: int, patience: float = 30.0) -> bool:
    """Whether a process ends in time."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            os.kill(process, 0)
            if ") Z" in Path(f"/proc/{process}/stat").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells no zombie from a process")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = tmp_path / "holding.py"
    script.write_text(HOLDING)
    run = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    run.send_signal(number)
    run.wait(30)
    run.stdout.close()
    assert gone(worker)


class Dying(Executor):
    """One whose worker the system ends at the n-th job, as it does when the memory is full."""

    def __init__(self, last: int, error: Exception) -> None:
        self._rest, self._error = last, error

    def submit(self, fn, /, *arguments):
        self._rest -= 1
        done: Future = Future()
        if self._rest < 0:
            raise self._error
        if self._rest == 0:
            done.set_exception(self._error)
        else:
            done.set_result(fn(*arguments))
        return done


ERRORS = {
    "a worker": (BrokenProcessPool("it was terminated abruptly"), "memory was full: use fewer"),
    "the scheduler": (ConnectionError("reset by peer"), "the executor failed: ConnectionError"),
    "the pool": (RuntimeError("cannot schedule new futures"), "the executor failed: RuntimeError"),
}


@pytest.mark.parametrize(("error", "match"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("last", [1, 3, 4])
def test_an_executor_that_dies_is_an_error_and_the_next_run_goes_on(
    tmp_path: Path, last: int, error: Exception, match: str
) -> None:
    source, out = sharded(tmp_path / "source", files=3, layers=1), tmp_path / "out"
    rf.compress_checkpoint(source, tmp_path / "expected", rf.Ratio(0.4))
    with pytest.raises(rf.RankfoldError, match=match):
        rf.compress_checkpoint(source, out, rf.Ratio(0.4), executor=Dying(last, error))
    assert not out.exists()
    rf.compress_checkpoint(source, out, rf.Ratio(0.4))
    assert contents(out) == contents(tmp_path / "expected")
    assert not work_folder(out).exists()
