"""Checkpoints compressed by a dask scheduler and its workers, processes of this machine."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.core.checkpoints.checkpoints import contents, sharded

import rankfold as rf
from rankfold.cli.executors import opened

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("ignore")  # dask's own, of ports and closed streams


@pytest.fixture(scope="module")
def cluster() -> Iterator["distributed.LocalCluster"]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as made:
        yield made


def address(cluster: "distributed.LocalCluster") -> str:
    return cluster.scheduler_address.replace("tcp://", "dask://")


@pytest.mark.parametrize("policy", [rf.Ratio(0.4), rf.Budget(params=0.5), rf.Energy(0.6)], ids=repr)
def test_workers_give_what_one_process_gives(
    cluster: "distributed.LocalCluster", tmp_path: Path, policy
) -> None:
    source = sharded(tmp_path / "source")
    expected = rf.compress_checkpoint(source, tmp_path / "serial", policy)
    with opened(address(cluster)) as executor:
        found = rf.compress_checkpoint(source, tmp_path / "dask", policy, executor=executor)
    assert found == expected
    assert contents(tmp_path / "dask") == contents(tmp_path / "serial")


def test_no_tensor_travels(cluster: "distributed.LocalCluster", tmp_path: Path) -> None:
    source = sharded(tmp_path / "source", files=2, layers=2, shape=(300, 400))
    with opened(address(cluster)) as executor:
        submitted = []
        submit = executor.submit

        def watched(function, *arguments):
            submitted.append(len(distributed.protocol.pickle.dumps(arguments)))
            return submit(function, *arguments)

        executor.submit = watched
        rf.compress_checkpoint(source, tmp_path / "out", rf.Ratio(0.3), executor=executor)
    assert submitted
    assert max(submitted) < 50_000 < 300 * 400 * 4


def test_a_worker_that_is_killed_is_made_up_for(
    cluster: "distributed.LocalCluster", tmp_path: Path
) -> None:
    source = sharded(tmp_path / "source", files=4, layers=2, shape=(300, 440))
    rf.compress_checkpoint(source, tmp_path / "serial", rf.Ratio(0.4))
    work = tmp_path / ".dask.rankfold"
    killed = []

    def kill() -> None:
        limit = time.monotonic() + 60
        while time.monotonic() < limit and not list(work.glob("new-*/*.part")):
            time.sleep(0.001)
        if work.exists():
            worker = next(iter(cluster.workers.values()))
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)

    killer = threading.Thread(target=kill)
    with opened(address(cluster)) as executor:
        killer.start()
        rf.compress_checkpoint(source, tmp_path / "dask", rf.Ratio(0.4), executor=executor)
    killer.join()
    assert killed
    assert contents(tmp_path / "dask") == contents(tmp_path / "serial")
