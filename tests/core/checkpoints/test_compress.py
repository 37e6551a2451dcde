"""A result belongs to what a checkpoint holds, not to names, sizes or times of its files."""

import os
import shutil
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest
from tests.core.checkpoints.files import contents, normal, sharded, sound

import rankfold as rf
from rankfold.checkpoints import planning

POLICY = rf.Ratio(0.4)


def exchanged(file: Path, seed: int) -> Path:
    """A file of numbers by a seed, always of one size and time."""
    tensors = {"a.weight": ("F32", (24, 40), normal(seed, 24, 40)), "n": ("F32", (7,), b"1" * 28)}
    sound(file, tensors)
    os.utime(file, (1, 1))
    return file


def written_in_place(file: Path, seed: int) -> None:
    exchanged(file, seed)


def moved_there(file: Path, seed: int) -> None:
    exchanged(file.with_name("other"), seed).replace(file)


@pytest.mark.parametrize("change", [written_in_place, moved_there])
def test_another_checkpoint_of_the_same_size_and_time_gives_another_result(
    tmp_path: Path, change
) -> None:
    file, out = exchanged(tmp_path / "x.safetensors", 0), tmp_path / "out"
    rf.compress_checkpoint(file, out, POLICY)
    first = contents(out)
    change(file, 1)
    rf.compress_checkpoint(file, out, POLICY)
    assert contents(out) != first
    rf.compress_checkpoint(file, tmp_path / "expected", POLICY)
    assert contents(out) == contents(tmp_path / "expected")


def test_workers_do_not_remember_a_checkpoint_that_was_exchanged(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Pickling(Executor):
        """One worker, whose arguments travel as bytes."""

        def submit(self, fn, /, *arguments):
            import pickle

            done: Future = Future()
            done.set_result(fn(*pickle.loads(pickle.dumps(arguments))))
            return done

    file = tmp_path / "x.pt"
    for seed in range(2):
        weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(seed))
        torch.save({"a.weight": weight}, tmp_path / "other")
        os.utime(tmp_path / "other", (1, 1))
        (tmp_path / "other").replace(file)
        rf.compress_checkpoint(file, tmp_path / "spread", POLICY, executor=Pickling())
        rf.compress_checkpoint(file, tmp_path / "serial", POLICY)
        assert contents(tmp_path / "spread") == contents(tmp_path / "serial")


def test_a_copy_is_the_same_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sharded(tmp_path / "source", files=2, layers=1)
    plan = rf.compress_checkpoint(source, tmp_path / "out", POLICY)
    copied = shutil.copytree(source, tmp_path / "copied", copy_function=shutil.copyfile)
    monkeypatch.setattr(planning, "planned", None)
    assert rf.compress_checkpoint(copied, tmp_path / "out", POLICY) == plan


class Damaging(Executor):
    """Does something to the source behind the last job."""

    def __init__(self, damage) -> None:
        self._damage = damage

    def submit(self, fn, /, *arguments):
        done: Future = Future()
        done.set_result(fn(*arguments))
        if fn.__name__ == "write":
            self._damage()
        return done


DAMAGES = {
    "grown": lambda file: os.truncate(file, file.stat().st_size + 100),
    "cut short": lambda file: os.truncate(file, 10),
    "another": lambda file: moved_there(file, 3),
    "gone": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_work_on_a_checkpoint_that_changes_meanwhile_is_discarded(tmp_path: Path, damage) -> None:
    file, out = exchanged(tmp_path / "x.safetensors", 0), tmp_path / "out"
    with pytest.raises(rf.RankfoldError, match=r"was changed or removed .* is discarded"):
        rf.compress_checkpoint(file, out, POLICY, executor=Damaging(lambda: damage(file)))
    assert {entry.name for entry in tmp_path.iterdir()} <= {file.name}
    if file.is_dir():
        file.rmdir()
    exchanged(file, 0)
    rf.compress_checkpoint(file, out, POLICY)
    assert rf.compress_checkpoint(file, out, POLICY).replaced


def test_a_checkpoint_that_is_only_touched_meanwhile_is_the_same(tmp_path: Path) -> None:
    file = exchanged(tmp_path / "x.safetensors", 0)
    touched = Damaging(lambda: (os.utime(file, (5, 5)), file.chmod(0o640)))
    rf.compress_checkpoint(file, tmp_path / "out", POLICY, executor=touched)
    rf.compress_checkpoint(file, tmp_path / "expected", POLICY)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_finished_result_with_holes_is_made_anew_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = exchanged(tmp_path / "x.safetensors", 0), tmp_path / "out"
    rf.compress_checkpoint(file, out, POLICY)
    expected = contents(out)
    os.truncate(out / "weights.safetensors", 2**40)
    rf.compress_checkpoint(file, out, POLICY)
    assert contents(out) == expected


def test_layers_without_a_shape_of_inputs_are_not_counted_and_named(tmp_path: Path) -> None:
    tensors = {name: ("F32", (24, 40), normal(0, 24, 40)) for name in ("a.weight", "b.weight")}
    sound(tmp_path / "x.safetensors", tensors)
    policy = rf.Budget(macs=0.5)
    plan = rf.compress_checkpoint(
        tmp_path / "x.safetensors", tmp_path / "out", policy, inputs={"a": (3,)}
    )
    assert plan["b"].macs is None
    assert plan.macs is not None
    assert plan.macs == plan["a"].macs
    assert plan.macs[1] <= 0.5 * 3 * 24 * 40
    assert any(note.endswith("not counted are those of 'b'") for note in plan.notes)
