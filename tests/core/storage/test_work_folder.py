"""Saves that are killed, or that meet each other."""

import threading
from pathlib import Path

import pytest
from tests.interrupting import interrupted

import rankfold as rf
from rankfold.state.restoration import settled
from rankfold.storage import folder as checkpoint
from rankfold.storage.work_folder import claimed, delete, publish, work_folder

torch = pytest.importorskip("torch")


def network(seed: int = 0) -> "torch.nn.Module":
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.ReLU(), torch.nn.Linear(40, 18))


@pytest.fixture(scope="module")
def small() -> rf.Compressed:
    return rf.compress(network(), rf.Ratio(0.4))


def test_saves_at_once_leave_one_of_them_whole(small: rf.Compressed, tmp_path: Path) -> None:
    out, start, errors = tmp_path / "out", threading.Barrier(4), []
    other = rf.compress(network(), rf.Ratio(0.6))

    def save(model: rf.Compressed) -> None:
        start.wait()
        try:
            for _ in range(3):
                model.save(out)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(m,)) for m in (small, other, small, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == [out]
    rf.load(network(), out)


def test_a_save_does_not_touch_one_that_is_under_way(
    small: rf.Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(checkpoint, "_PATIENCE", 0.0)
    with checkpoint.claimed(out) as work:
        (work / "precious").touch()
        with pytest.raises(rf.RankfoldError, match="another run is writing"):
            small.save(out)
        assert (work / "precious").exists()
        (work / "precious").unlink()
    small.save(out)
    assert not work_folder(out).exists()


@pytest.mark.parametrize("left", ["new", "old", "owner.5f"])
def test_a_save_removes_what_a_killed_one_has_left(
    small: rf.Compressed, tmp_path: Path, left: str
) -> None:
    work = work_folder(tmp_path / "out")
    small.save(tmp_path / "out")
    work.mkdir(mode=0o700)
    (work / left).touch()
    small.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_save_keeps_the_unfinished_work_on_a_checkpoint(
    small: rf.Compressed, tmp_path: Path
) -> None:
    work = work_folder(tmp_path / "out")
    work.mkdir(mode=0o700)
    (work / "plan.json").write_text("{}")
    small.save(tmp_path / "out")
    assert [entry.name for entry in work.iterdir() if entry.name != "lock"] == ["plan.json"]


def test_a_save_that_is_interrupted_anywhere_leaves_nothing_hidden(tmp_path: Path) -> None:
    out, files = tmp_path / "made" / "out", ("storage/work_folder.py", "state/restoration.py")

    def work() -> None:
        with claimed(out) as folder:
            (folder / "new").mkdir()
            publish(folder / "new", out)

    for earlier in (False, True):
        total = interrupted(work, files)
        assert total > 50
        for line in range(1, total + 1):
            delete(tmp_path / "made")
            if earlier:
                work()
            settled(interrupted)(work, files, line)
            assert not work_folder(out).exists()
            assert not earlier or out.exists()
