"""State dicts in .pt files: nothing that they hold is run, and what is none is refused."""

import argparse
import os
import pickle
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import nn
from torch.serialization import get_safe_globals

import rankfold as rf
from rankfold_torch.pickle_reader import read_state

POLICY = rf.Ratio(0.4)
LITERAL = rf.Ranks(4)  # of all layers, those of the outputs among them


class Code:
    """What unpickling would run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "fc.weight": torch.randn(12, 20, generator=generator),
        "fc.bias": torch.randn(12, generator=generator),
        "steps": torch.tensor(3),
    }


def refused(file: Path, match: str | None = None) -> None:
    before = sorted(file.parent.iterdir())
    with pytest.raises(rf.RankfoldError, match=match):
        rf.compress_checkpoint(file, file.parent / "out", POLICY)
    assert sorted(file.parent.iterdir()) == before


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_pickle_with_code_is_not_run(tmp_path: Path, suffix: str, legacy: bool) -> None:
    file, marker = tmp_path / f"x{suffix}", tmp_path / "marker"
    content = {**state(), "code": Code(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    refused(file)
    file.write_bytes(pickle.dumps(Code(marker)))
    refused(file)
    assert not marker.exists()


def test_a_file_without_tensors_is_told_as_one(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", r"no tensors under 'epoch', 'best'; save the state dict")


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4), tmp_path / "x.pt")
    # Without torch's page of advice to run what the file holds.
    refused(tmp_path / "x.pt", r"^.{0,200}holds torch\.nn\S*Linear, a pickled.{0,200}save\(model")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_is_what_the_same_tensors_are(tmp_path: Path, legacy: bool) -> None:
    torch.save(state(), tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    rf.compress_checkpoint(tmp_path / "x.pt", tmp_path / "out", POLICY)
    found = load_file(tmp_path / "out" / "weights.safetensors")
    assert found["steps"] == 3
    assert np.array_equal(found["fc.1.bias"], state()["fc.bias"].numpy())


def rows() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


CONTENTS = {
    "a tensor": torch.ones(2, 3),
    "a list": [torch.ones(2, 3)],
    "numbers": {"fc.weight": 1},
    "other names": {1: torch.ones(2, 3)},
    "an empty name": {"": torch.ones(2, 3), **state()},
    "a name with a null": {"a\0": torch.ones(2, 3), **state()},
    "half a character": {"\ud800.weight": torch.ones(2, 3), **state()},
    "the name of metadata": {"__metadata__": torch.ones(2, 3), **state()},
    "nothing": {},
    "a sparse tensor": {**state(), "a": torch.eye(3).to_sparse()},
    "more than the file holds": {**state(), "a.weight": torch.ones(1).expand(2**40)},
    "much more than the file holds": {**state(), "a.weight": torch.ones(1).expand(2**30, 2**30)},
    "no values": {**state(), "a.weight": torch.ones(4, 5, device="meta")},
    "two numbers in one": {**state(), "a": torch.ones(3, dtype=torch.complex128)},
    "quantised": {**state(), "a": torch.ones(3, dtype=torch.uint16)},
    "a tensor of rows": lambda: {**state(), "a": rows()},  # as the test runs: its import takes long
    "two models": {"teacher": state(), "student": state()},
    "too deep": {"a": {"b": {"c": {"d": {"e": state()}}}}},
    "two names in one": {**state(), **{f"_orig_mod.{name}": t for name, t in state().items()}},
    "one name with a wrapper": {**state(), "module.fc.weight": torch.ones(12, 20)},
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_state_dict_of_plain_tensors_is_refused(tmp_path: Path, content) -> None:
    torch.save(content() if callable(content) else content, tmp_path / "x.pt")
    refused(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["last.ckpt", "best.pth.tar", "model", "model.pt"])
def test_a_file_is_known_by_its_content(tmp_path: Path, name: str, legacy: bool) -> None:
    content = {"state_dict": state(), "epoch": 3}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    plan = rf.compress_checkpoint(tmp_path / name, tmp_path / "out", POLICY)
    assert plan["fc"].method == "svd"
    assert plan.notes == ("tensors from 'state_dict' of the file",)


def test_safetensors_files_of_any_name_are_read(tmp_path: Path) -> None:
    for name in ("a.safetensors", "pytorch_model.bin", "model.ckpt"):
        save_file(state(), tmp_path / name)
        assert rf.compress_checkpoint(tmp_path / name, tmp_path / "out", POLICY)["fc"].method


def test_a_name_that_promises_safetensors_leads_to_no_pickle(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", r"a file of torch.save\(\), not what its name says")
    (tmp_path / "x.ckpt").write_bytes(b"neither of them")
    refused(tmp_path / "x.ckpt", r"nor a file of torch.save\(\)")


HYPERPARAMETERS = {
    "options": argparse.Namespace(rate=0.1),
    "optimizer": partial(torch.optim.Adam, lr=0.1),
    "folder": Path("runs"),
    "activation": nn.functional.relu,
    "seed": np.random.default_rng(0),
}
CONTAINERS = {
    "beside objects of other classes": lambda state: {
        "state_dict": state,
        "hyper_parameters": HYPERPARAMETERS,
        "mean": HYPERPARAMETERS["options"],
    },
    "of a trainer": lambda state: {"state_dict": state, "epoch": torch.tensor(3)},
    "with an optimizer": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
    },
    "of a parallel trainer": lambda state: {"module": state, "ema": state},
    "in another": lambda state: {"model": {"state_dict": state}},
    "of an unknown name": lambda state: {"teacher": state, "epoch": 3},
}


@pytest.mark.parametrize("pack", CONTAINERS.values(), ids=CONTAINERS)
def test_the_state_is_found_in_what_trainers_save(tmp_path: Path, pack) -> None:
    torch.save(state(), tmp_path / "plain.pt")
    torch.save(pack(state()), tmp_path / "packed.ckpt")
    plain = rf.compress_checkpoint(tmp_path / "plain.pt", tmp_path / "a", POLICY)
    packed = rf.compress_checkpoint(tmp_path / "packed.ckpt", tmp_path / "b", POLICY)
    assert packed.layers == plain.layers
    assert plain.notes == ()
    assert packed.notes
    files = [tmp_path / out / "weights.safetensors" for out in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_files_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, load = tmp_path / "x.ckpt", torch.load
    torch.save({"state_dict": state(), "hyper_parameters": HYPERPARAMETERS}, file)
    before = get_safe_globals()
    running: list[int] = []

    def slow(*args, **options):
        running.append(1)
        time.sleep(0.01)  # so that another thread would take its turn
        # What stands in for the objects of one file is known to every load of the process.
        assert len(running) == 1
        try:
            return load(*args, **options)
        finally:
            running.pop()

    monkeypatch.setattr(torch, "load", slow)
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(read_state, [file] * 8))
    assert all(known.tensors.keys() == state().keys() for known in states)
    assert set(get_safe_globals()) == set(before)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Sequential(nn.Linear(12, 9)))


class Own(nn.Module):
    """A model that calls a part of its own as a wrapper does."""

    def __init__(self) -> None:
        super().__init__()
        self.module = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


WRAPPERS = {
    "module.": lambda name: f"module.{name}",
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "twice": lambda name: f"module.module.{name}",
    "in the middle": lambda name: name.replace("2.", "2._checkpoint_wrapped_module."),
    "of shards": lambda name: f"_fsdp_wrapped_module.{name}".replace("2.", "2._orig_mod."),
    "a trainer's": lambda name: f"net.{name}",
}


@pytest.mark.parametrize("rename", WRAPPERS.values(), ids=WRAPPERS)
def test_checkpoints_of_wrapped_models_are_loaded_into_plain_ones(tmp_path: Path, rename) -> None:
    torch.save({rename(n): t for n, t in network().state_dict().items()}, tmp_path / "x.pt")
    plan = rf.compress_checkpoint(tmp_path / "x.pt", tmp_path / "out", LITERAL)
    assert len(plan.replaced) == 2
    x = torch.randn(3, 20)
    loaded = rf.load(network(), tmp_path / "out")
    assert torch.equal(loaded(x), rf.compress(network(), LITERAL).model(x))


def test_a_part_of_the_models_own_is_no_wrapper(tmp_path: Path) -> None:
    torch.save(Own().state_dict(), tmp_path / "x.pt")
    plan = rf.compress_checkpoint(tmp_path / "x.pt", tmp_path / "out", LITERAL)
    assert plan.notes == ("names without module, which wrappers of the model add",)
    x = torch.randn(3, 20)
    loaded = rf.load(Own(), tmp_path / "out")
    assert torch.equal(loaded(x), rf.compress(Own(), LITERAL).model(x))


def test_archives_that_take_more_memory_than_room_are_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "sound.pt")
    with (
        zipfile.ZipFile(tmp_path / "sound.pt") as sound,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in sound.infolist():
            bomb.writestr(part.filename, sound.read(part))
        bomb.writestr("archive/data/9", b"\0" * 10_000_000)
    refused(tmp_path / "x.pt", "is compressed")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "sound")
    sound = (tmp_path / "sound").read_bytes()
    file = tmp_path / "x.pt"
    for content in (b"", b"PK\x03\x04", sound[: len(sound) // 2], sound[100:], b"\x80\x02", b"x"):
        file.write_bytes(content)
        refused(file)
    file.unlink()
    os.mkfifo(file)
    refused(file, "not a plain file")
    file.unlink()
    file.symlink_to(tmp_path / "sound")
    refused(file, "is a link")


def test_corrupted_files_are_read_or_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "sound")
    sound = (tmp_path / "sound").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(sound)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        (tmp_path / "x.pt").write_bytes(data)
        with suppress(rf.RankfoldError):
            rf.compress_checkpoint(tmp_path / "x.pt", tmp_path / "out", POLICY)
        assert not (tmp_path / ".out.rankfold").exists()


def test_shared_views_conjugates_and_parameters_are_copied(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        **state(),
        "one": base,
        "view": base.T[1:],
        "conj": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "negated": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "parameter": nn.Parameter(base + 1),
        "nothing": torch.empty(0, 5),
    }
    torch.save(content, tmp_path / "x.pt")
    rf.compress_checkpoint(tmp_path / "x.pt", tmp_path / "out", POLICY)
    found = load_file(tmp_path / "out" / "weights.safetensors")
    for name, tensor in content.items():
        if name in found:
            assert np.array_equal(found[name], tensor.detach().resolve_conj().resolve_neg().numpy())
    assert {"one", "view", "conj", "negated", "parameter", "nothing"} <= found.keys()


class TestKeys:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        averaged = {name: value / 2 for name, value in state().items()}
        content = {"net": state(), "ema": averaged, "more": {"teacher": {"state_dict": averaged}}}
        torch.save(content, tmp_path / "several.pt")
        return tmp_path / "several.pt"

    @pytest.mark.parametrize("key", ["ema", "more/teacher", "more/teacher/state_dict"])
    def test_one_of_several_states_is_chosen(self, key: str, file: Path, tmp_path: Path) -> None:
        save_file({n: v / 2 for n, v in state().items()}, tmp_path / "plain.safetensors")
        plain = rf.compress_checkpoint(tmp_path / "plain.safetensors", tmp_path / "a", POLICY)
        plan = rf.compress_checkpoint(file, tmp_path / "b", POLICY, key=key)
        assert plan.layers == plain.layers
        assert "ema" in plan.notes[0] or "teacher" in plan.notes[0]
        first, second = (load_file(tmp_path / out / "weights.safetensors") for out in "ab")
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[name], second[name]) for name in first)

    def test_a_known_state_is_taken_and_the_others_are_told(self, tmp_path: Path) -> None:
        torch.save({"ema": state(), "model": state()}, tmp_path / "two.pt")
        plan = rf.compress_checkpoint(tmp_path / "two.pt", tmp_path / "out", POLICY)
        assert plan.notes[0] == (
            "tensors from 'model' of the file, which has others in 'ema': key= (--key on the "
            "command line) chooses"
        )

    def test_another_key_is_another_result(self, file: Path, tmp_path: Path) -> None:
        for key in ("ema", "net"):
            rf.compress_checkpoint(file, tmp_path / "out", POLICY, key=key)
        found = load_file(tmp_path / "out" / "weights.safetensors")
        assert np.array_equal(found["fc.bias" if "fc.bias" in found else "fc.1.bias"],
                              state()["fc.bias"].numpy())  # fmt: skip

    def test_a_key_that_is_not_there_is_told_with_those_that_are(
        self, file: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(rf.RankfoldError, match=r"no dict 'none'; it has 'net', 'ema'"):
            rf.compress_checkpoint(file, tmp_path / "out", POLICY, key="none")

    def test_a_safetensors_file_has_no_keys(self, tmp_path: Path) -> None:
        save_file(state(), tmp_path / "plain.safetensors")
        with pytest.raises(rf.RankfoldError, match="holds one state"):
            rf.compress_checkpoint(tmp_path / "plain.safetensors", tmp_path / "a", POLICY, key="b")
