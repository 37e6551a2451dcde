"""Saving a compressed model and loading it into a fresh one; damaged and hostile folders."""

import hashlib
import json
import os
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rankfold as rf
from rankfold.plugins.registry import registry
from rankfold_torch.adapter import TorchAdapter

Untouched = Callable[[nn.Module], AbstractContextManager[None]]


def conv() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 13, (3, 4), 2),
        nn.BatchNorm2d(13),
        nn.ReLU(),
        nn.Conv2d(13, 11, 3, bias=False),
        nn.Flatten(),
        nn.LazyLinear(17),
        nn.Linear(17, 7),
    )
    model(torch.randn(4, 3, 17, 16))
    return model.eval()


class Tied(nn.Module):
    """A small language model whose head is its embedding, and a layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(29, 12)
        block = nn.TransformerEncoderLayer(12, 4, 20, dropout=0.0, batch_first=True)
        self.block = block
        self.inner = nn.Linear(12, 12)
        self.again = self.inner
        self.head = nn.Linear(12, 29, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.block(self.embed(ids))
        return self.head(self.again(self.inner(x)))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "conv": (conv, lambda: torch.randn(2, 3, 17, 16)),
    "tied": (lambda: Tied().eval(), lambda: torch.randint(0, 29, (2, 5))),
    "bfloat16": (
        lambda: nn.Sequential(nn.Linear(11, 23), nn.ReLU(), nn.Linear(23, 7)).bfloat16(),
        lambda: torch.randn(3, 11).bfloat16(),
    ),
    "float64": (
        lambda: nn.Sequential(nn.Linear(11, 23)).double(),
        lambda: torch.randn(3, 11).double(),
    ),
    "embedding": (lambda: nn.Embedding(29, 13), lambda: torch.randint(0, 29, (2, 5))),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(7, 11, 3, 2, 1, 1)),
        lambda: torch.randn(2, 7, 5, 6),
    ),
    "channels last": (
        lambda: nn.Sequential(nn.Conv2d(7, 11, 3)).to(memory_format=torch.channels_last),
        lambda: torch.randn(2, 7, 9, 8),
    ),
}
METHODS = (None, ("svd", "cp"), ("svd", "cp3"), ("channel_svd", "svd"), ("spatial_svd", "svd"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a compressed `conv`."""
    rf.compress(conv(), rf.Ranks(2)).save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_the_loaded_model_gives_the_saved_outputs_bit_for_bit(
    name: str, methods: Any, tmp_path: Path
) -> None:
    make, draw = MODELS[name]
    small = rf.compress(make(), rf.Ranks(2), methods=methods)
    small.save(tmp_path / "saved")
    x = draw()
    assert torch.equal(rf.load(make(), tmp_path / "saved")(x), small.model(x))


@pytest.mark.parametrize("name", MODELS)
def test_the_loaded_model_has_the_saved_state(name: str, tmp_path: Path) -> None:
    make, _ = MODELS[name]
    small = rf.compress(make(), rf.Ranks("full"))
    small.save(tmp_path / "saved")
    one, other = small.model.state_dict(), rf.load(make(), tmp_path / "saved").state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_trained_factors_are_saved(tmp_path: Path) -> None:
    small = rf.compress(conv(), rf.Ranks(2))
    x = torch.randn(2, 3, 17, 16)
    small.model.train()(x).sum().backward()
    torch.optim.SGD(small.model.parameters(), lr=0.1).step()
    small.save(tmp_path / "saved")
    assert torch.equal(rf.load(conv(), tmp_path / "saved")(x), small.model.eval()(x))


def test_ties_and_shared_modules_survive(tmp_path: Path) -> None:
    rf.compress(Tied(), rf.Ranks(2)).save(tmp_path / "saved")
    loaded = rf.load(Tied(), tmp_path / "saved")
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.again is loaded.inner


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    rf.compress(Tied(), rf.Ranks(2)).save(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "weights.safetensors")
    assert sum(name in stored for name in ("head.weight", "embed.weight")) == 1


def test_the_model_comes_before_the_folder(saved: Path) -> None:
    with pytest.raises(rf.RankfoldError, match=r"Linear is not a path.*the model first"):
        rf.load(saved, nn.Linear(4, 3))  # type: ignore[arg-type]


def test_the_folder_holds_the_plan_and_the_weights(saved: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == ["plan.json", "weights.safetensors"]


def test_the_stored_names_are_those_of_the_state(tmp_path: Path) -> None:
    small = rf.compress(conv(), rf.Ranks(2))
    small.save(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "weights.safetensors")
    assert sorted(stored) == sorted(small.model.state_dict())


def test_loading_decomposes_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*anything: Any, **options: Any) -> None:
        raise AssertionError("decomposed")

    for method in registry().decompositions.values():
        monkeypatch.setattr(type(method), "decompose", fail)
    assert isinstance(rf.load(conv(), saved)[0], nn.Sequential)


def test_loading_leaves_the_fresh_model_as_it_was(saved: Path, untouched: Untouched) -> None:
    fresh = conv()
    with untouched(fresh):
        rf.load(fresh, saved)


def test_the_weights_of_the_fresh_model_do_not_matter(saved: Path) -> None:
    x = torch.randn(2, 3, 17, 16)
    zero = conv()
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(rf.load(zero, saved)(x), rf.load(conv(), saved)(x))


def test_the_loaded_model_shares_no_memory_with_the_fresh_one(saved: Path) -> None:
    fresh = conv()
    loaded = rf.load(fresh, saved)
    own = {t.untyped_storage().data_ptr() for t in fresh.state_dict().values()}
    assert own.isdisjoint(t.untyped_storage().data_ptr() for t in loaded.state_dict().values())


def test_mode_and_requires_grad_are_those_of_the_fresh_model(saved: Path) -> None:
    fresh = conv().train()
    fresh[6].weight.requires_grad_(False)
    loaded = rf.load(fresh, saved)
    assert loaded.training
    assert [stage.weight.requires_grad for stage in loaded[6]] == [False, False]


def test_saving_again_replaces_the_earlier_save(saved: Path) -> None:
    other = rf.compress(conv(), rf.Ranks(3))
    other.save(saved)
    x = torch.randn(2, 3, 17, 16)
    assert torch.equal(rf.load(conv(), saved)(x), other.model(x))


def test_a_model_compressed_twice_is_loaded_into_one_compressed_once(tmp_path: Path) -> None:
    once = rf.compress(conv(), rf.Ratio(0.6))
    twice = rf.compress(once.model, rf.Ratio(0.6))
    twice.save(tmp_path / "saved")
    x = torch.randn(2, 3, 17, 16)
    assert torch.equal(rf.load(once.model, tmp_path / "saved")(x), twice.model(x))


def rewrite_plan(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = json.loads((folder / "plan.json").read_text())
    change(found)
    (folder / "plan.json").write_text(json.dumps(found))


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes the weights and the hash, as somebody who knows the format would."""
    file = folder / "weights.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rewrite_plan(folder, lambda found: found.update(files={file.name: digest}, sizes={}))


def planned(folder: Path, **fields: Any) -> None:
    """Changes what the plan says of layer "6", a Linear 17→7 of rank 2."""

    def change(found: dict[str, Any]) -> None:
        next(x for x in found["plan"]["layers"] if x["path"] == "6").update(fields)

    rewrite_plan(folder, change)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def link(file: Path) -> None:
    elsewhere = file.parent.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def be_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def swap_ops(folder: Path) -> None:
    def change(found: dict[str, Any]) -> None:
        one, other = found["plan"]["layers"][-2:]
        one["op"], other["op"] = other["op"], one["op"]

    rewrite_plan(folder, change)


def drop_layer(folder: Path) -> None:
    rewrite_plan(folder, lambda found: found["plan"]["layers"].pop())


def repeat_layer(folder: Path) -> None:
    rewrite_plan(folder, lambda found: found["plan"]["layers"].append(found["plan"]["layers"][0]))


def forget_method(folder: Path) -> None:
    planned(folder, method=None, ranks=[])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated weights": (lambda f: truncate(f / "weights.safetensors"), "damaged or was exch"),
    "changed weights": (lambda f: flip_byte(f / "weights.safetensors"), "damaged or was exch"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "missing or not a plain file"),
    "linked weights": (lambda f: link(f / "weights.safetensors"), "missing or not a plain file"),
    "folder as weights": (lambda f: be_folder(f / "weights.safetensors"), "not a plain file"),
    "truncated plan": (lambda f: truncate(f / "plan.json"), "damaged or not a rankfold plan"),
    "no plan": (lambda f: (f / "plan.json").unlink(), "missing or not a plain file"),
    "linked plan": (lambda f: link(f / "plan.json"), "missing or not a plain file"),
    "empty plan": (lambda f: (f / "plan.json").write_text(""), "damaged or not a rankfold plan"),
    "other json": (lambda f: (f / "plan.json").write_text("[]"), "not a rankfold plan"),
    "no text": (lambda f: (f / "plan.json").write_bytes(b"\xff\xfe\x00"), "not a rankfold plan"),
    "deep json": (lambda f: (f / "plan.json").write_text("[" * 99999), "not a rankfold plan"),
    "further field": (
        lambda f: rewrite_plan(f, lambda p: p.update(extra=1)),
        "not a rankfold plan",
    ),
    "other version": (lambda f: rewrite_plan(f, lambda p: p.update(rankfold=3)), "version 3"),
    "rank too high": (lambda f: planned(f, ranks=[8]), "layer '6'.*rank 8 exceeds 7"),
    "huge rank": (lambda f: planned(f, ranks=[2**62]), "layer '6'.*exceeds 7"),
    "enormous rank": (lambda f: planned(f, ranks=[10**30]), "ranks|exceeds 7"),
    "rank zero": (lambda f: planned(f, ranks=[0]), "layer '6'.*use at least 1"),
    "rank below zero": (lambda f: planned(f, ranks=[-1]), "layer '6'.*use at least 1"),
    "too many ranks": (lambda f: planned(f, ranks=[2, 2]), "layer '6'.*2 ranks"),
    "other rank": (lambda f: planned(f, ranks=[3]), "torch.float32"),
    "rank as text": (lambda f: planned(f, ranks=["2"]), "not a rankfold plan"),
    "unknown method": (lambda f: planned(f, method="qr"), "'qr' is unknown"),
    "wrong method": (lambda f: planned(f, method="cp"), "layer '6'.*cp applies to conv"),
    "unknown layer": (lambda f: planned(f, path="9"), "layer '9' of the plan is not in the"),
    "hostile path": (lambda f: planned(f, path="../../6"), "is not in the model"),
    "method without ranks": (lambda f: planned(f, ranks=[]), "a method needs ranks"),
    "swapped ops": (swap_ops, "but the plan is for Linear"),
    "forgotten method": (forget_method, "does not fit the model"),
    "layer dropped": (drop_layer, "does not fit the model"),
    "layer twice": (repeat_layer, "stands twice in the plan"),
    "tensor dropped": (
        lambda f: rewrite_weights(f, lambda t: t.pop("6.0.weight")),
        "it lacks 6.0.weight",
    ),
    "tensor added": (
        lambda f: rewrite_weights(f, lambda t: t.update(extra=torch.ones(3))),
        "has extra that the model has not",
    ),
    "tensor of another shape": (
        lambda f: rewrite_weights(f, lambda t: t.update({"6.0.weight": torch.ones(3, 17)})),
        r"'6.0.weight' is torch.float32 \(3, 17\)",
    ),
    "tensor of another dtype": (
        lambda f: rewrite_weights(f, lambda t: t.update({"6.0.weight": t["6.0.weight"].half()})),
        "'6.0.weight' is torch.float16",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_an_error(damage: str, saved: Path) -> None:
    harm, message = DAMAGES[damage]
    harm(saved)
    with pytest.raises(rf.RankfoldError, match=message):
        rf.load(conv(), saved)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_leaves_the_fresh_model_as_it_was(
    damage: str, saved: Path, untouched: Untouched
) -> None:
    DAMAGES[damage][0](saved)
    fresh = conv()
    with untouched(fresh), pytest.raises(rf.RankfoldError):
        rf.load(fresh, saved)


def wider() -> nn.Module:
    model = conv()
    model[6] = nn.Linear(17, 9)
    return model


def tied_fresh() -> nn.Module:
    model = conv()
    model.further = nn.Linear(17, 7)
    model.further.weight = model[6].weight
    return model


FRESH: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "other architecture": (lambda: nn.Sequential(nn.Linear(11, 7)), "is not in the model"),
    "other width": (wider, "layer '6' is Linear 17→9, but the plan is for Linear 17→7"),
    "other dtype": (lambda: conv().double(), "make the model of that shape and dtype first"),
    "further layers": (
        lambda: nn.Sequential(*conv(), nn.Linear(7, 5)),
        "it lacks 7.bias, 7.weight",
    ),
    "tied": (tied_fresh, "layer '6'.*tied: its weight is also 'further.weight'"),
    "wrapped": (lambda: nn.DataParallel(conv()), "compress model.module"),
}


@pytest.mark.parametrize("case", FRESH)
def test_a_fresh_model_that_does_not_fit_is_an_error(case: str, saved: Path) -> None:
    make, message = FRESH[case]
    with pytest.raises(rf.RankfoldError, match=message):
        rf.load(make(), saved)


@pytest.mark.parametrize("case", ["other width", "other dtype", "further layers", "tied"])
def test_a_fresh_model_that_does_not_fit_stays_as_it_was(
    case: str, saved: Path, untouched: Untouched
) -> None:
    fresh = FRESH[case][0]()
    with untouched(fresh), pytest.raises(rf.RankfoldError):
        rf.load(fresh, saved)


def test_loading_from_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(rf.RankfoldError, match="missing or not a plain file"):
        rf.load(conv(), tmp_path / "nowhere")


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(file.relative_to(folder)): file.read_bytes() if file.is_file() else None
        for file in sorted(folder.rglob("*"))
    }


@pytest.fixture
def small() -> rf.Compressed:
    return rf.compress(conv(), rf.Ranks(2))


def test_an_empty_folder_is_filled(small: rf.Compressed, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    small.save(tmp_path / "empty")
    assert len(list((tmp_path / "empty").iterdir())) == 2


def test_missing_parents_are_made(small: rf.Compressed, tmp_path: Path) -> None:
    small.save(tmp_path / "a" / "b" / "saved")
    assert rf.load(conv(), tmp_path / "a" / "b" / "saved")


def test_a_relative_path_is_taken_from_the_working_directory(
    small: rf.Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small.save("saved")
    assert (tmp_path / "saved" / "plan.json").is_file()


def test_nothing_but_the_folder_is_left_behind(small: rf.Compressed, tmp_path: Path) -> None:
    small.save(tmp_path / "saved")
    small.save(tmp_path / "saved")
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]


def test_a_foreign_folder_is_refused_and_left(small: rf.Compressed, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(rf.RankfoldError, match=r"holds 'thesis\.tex'"):
        small.save(tmp_path / "mine")
    assert tree(tmp_path) == before


def test_a_foreign_file_is_refused_and_left(small: rf.Compressed, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("years of work")
    with pytest.raises(rf.RankfoldError, match="is a file; name a folder"):
        small.save(tmp_path / "mine")
    assert tree(tmp_path) == {"mine": b"years of work"}


@pytest.mark.parametrize("below", ["file/saved", "file/a/saved"])
def test_a_path_below_a_file_is_an_error_and_leaves_nothing(
    below: str, small: rf.Compressed, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(rf.RankfoldError, match="cannot write to"):
        small.save(tmp_path / below)
    assert tree(tmp_path) == {"file": b"no folder"}


@pytest.mark.parametrize("target", [".", ".."])
def test_the_working_directory_is_not_replaced(
    target: str, small: rf.Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "saved" / "plan.json"  # a name that a save has, too
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(rf.RankfoldError, match="is or holds the working directory"):
        small.save(target)
    assert here.samefile(".")


def test_a_folder_is_saved_while_the_working_directory_is_gone(
    small: rf.Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "saved").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    small.save(tmp_path / "saved")
    monkeypatch.undo()
    assert len(list((tmp_path / "saved").iterdir())) == 2


def test_the_longest_name_is_a_folder_and_a_longer_one_an_error(
    small: rf.Compressed, tmp_path: Path
) -> None:
    small.save(tmp_path / ("a" * 255))
    assert rf.load(conv(), tmp_path / ("a" * 255))
    with pytest.raises(rf.RankfoldError, match="cannot write to"):
        small.save(tmp_path / ("a" * 256))


def test_a_broken_link_is_refused(small: rf.Compressed, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(rf.RankfoldError, match="is a link"):
        small.save(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


def full_disk(*anything: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("folder", ["saved", "a/b/saved"])
def test_a_save_that_fails_leaves_nothing_behind(
    folder: str, small: rf.Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchAdapter, "save_weights", full_disk)
    with pytest.raises(rf.RankfoldError, match="No space left on device"):
        small.save(tmp_path / folder)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("step", ["save_weights", "rename"])
def test_a_crash_while_saving_leaves_the_earlier_save(
    step: str, saved: Path, small: rf.Compressed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(saved.parent)
    if step == "save_weights":
        monkeypatch.setattr(TorchAdapter, "save_weights", full_disk)
    else:
        rename = Path.rename

        def second_fails(path: Path, target: Path) -> Path:
            if path.name == "new":
                full_disk()
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(rf.RankfoldError, match="No space left on device"):
        small.save(saved)
    monkeypatch.undo()
    assert tree(saved.parent) == before


def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    small = rf.compress(nn.Linear(211, 197), rf.Ranks(20))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(rf.RankfoldError, match="cannot write to"):
            small.save(tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == {}


def test_weights_are_the_same_files_for_the_same_model(tmp_path: Path) -> None:
    model = conv()
    for name in ("a", "b"):
        rf.compress(model, rf.Ranks(2)).save(tmp_path / name)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_saved_files_can_be_read_by_others(saved: Path) -> None:
    old = os.umask(0)
    os.umask(old)
    assert saved.stat().st_mode & 0o777 == 0o777 & ~old
    assert {file.stat().st_mode & 0o777 for file in saved.iterdir()} == {0o666 & ~old}
