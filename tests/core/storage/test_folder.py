"""A compressed model as a folder, and back into a fresh model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter, arrays
from rankfold_numpy.framework import Dense, Model
from safetensors.numpy import load_file, save_file

import rankfold as rf
from rankfold.errors import RankfoldError, Refused
from rankfold.storage import folder
from rankfold.storage.folder import load, modules_of, save
from rankfold.storage.saved_plan import read_plan

SHAPES = ((24, 40), (40, 18))


def network(seed: int = 0, shapes: tuple[tuple[int, int], ...] = SHAPES) -> Model:
    rng = np.random.default_rng(seed)
    return Model(
        [Dense(rng.standard_normal(shape), rng.standard_normal(shape[1])) for shape in shapes]
    )


@pytest.fixture(scope="module")
def small() -> rf.Compressed:
    return rf.compress(network(), rf.Ranks(5), adapter=NumpyAdapter())


@pytest.fixture
def saved(small: rf.Compressed, tmp_path: Path) -> Path:
    save(small.model, small.plan, tmp_path / "out", NumpyAdapter())
    return tmp_path / "out"


def test_a_fresh_model_gets_structure_and_weights_bit_for_bit(
    small: rf.Compressed, saved: Path
) -> None:
    fresh = network(7)
    before = {name: array.copy() for name, array in arrays(fresh).items()}
    loaded = load(fresh, saved, adapter=NumpyAdapter())
    stored, expected = arrays(loaded), arrays(small.model)
    assert stored.keys() == expected.keys()
    assert all(np.array_equal(stored[name], expected[name]) for name in expected)
    assert all(np.array_equal(array, before[name]) for name, array in arrays(fresh).items())


def test_the_folder_holds_the_plan_and_the_weights_and_nothing_is_left_beside(
    small: rf.Compressed, saved: Path
) -> None:
    assert sorted(file.name for file in saved.iterdir()) == ["plan.json", "weights.safetensors"]
    assert list(saved.parent.iterdir()) == [saved]
    assert read_plan(saved).plan == small.plan
    modes = {file.stat().st_mode for file in saved.iterdir()}
    assert len(modes) == 1


def test_an_earlier_save_is_replaced_as_a_whole(saved: Path) -> None:
    other = rf.compress(network(), rf.Ranks(3), adapter=NumpyAdapter())
    save(other.model, other.plan, saved, NumpyAdapter())
    assert [layer.ranks for layer in read_plan(saved).plan.replaced] == [(3,), (3,)]


def test_weights_that_were_exchanged_are_refused(saved: Path) -> None:
    weights = load_file(saved / "weights.safetensors")
    save_file({name: -array for name, array in weights.items()}, saved / "weights.safetensors")
    with pytest.raises(RankfoldError, match=r"is not the file that plan.json was written with"):
        load(network(), saved, adapter=NumpyAdapter())


def test_a_model_of_another_size_is_named_with_its_layer(saved: Path) -> None:
    other = network(shapes=((24, 41), (41, 18)))
    with pytest.raises(RankfoldError, match=r"layer '0'.*give a model of the architecture"):
        load(other, saved, adapter=NumpyAdapter())


def test_the_model_comes_first() -> None:
    with pytest.raises(RankfoldError, match="Model is not a path; call load"):
        load("out", network(), adapter=NumpyAdapter())  # type: ignore[arg-type]  # on purpose


def test_layers_that_cannot_be_replaced_are_named_in_the_remedy(saved: Path) -> None:
    class Refusing(NumpyAdapter):
        def build(self, model: Any, path: str, chain: Any) -> Any:
            raise Refused("no room")

    with pytest.raises(RankfoldError, match=r"layer '0'.*no room; .*exclude=\['0', '1'\]"):
        modules_of(Refusing(), network(), read_plan(saved))


def test_blank_modules_of_the_planned_ranks_take_the_place_of_the_layers(saved: Path) -> None:
    modules = modules_of(NumpyAdapter(), network(), read_plan(saved))
    kernels = [[layer.kernel.shape for layer in module.layers] for module in modules.values()]
    assert kernels == [[(24, 5), (5, 40)], [(40, 5), (5, 18)]]


def test_a_tensor_that_is_in_two_files_is_an_error(saved: Path) -> None:
    record = json.loads((saved / "plan.json").read_text())
    (digest,) = record["files"].values()
    (saved / "more.safetensors").write_bytes((saved / "weights.safetensors").read_bytes())
    record["files"]["more.safetensors"] = digest
    (saved / "plan.json").write_text(json.dumps(record))
    with pytest.raises(RankfoldError, match=r"tensor '.*' is in .*more.* and .*weights"):
        load(network(), saved, adapter=NumpyAdapter())


@pytest.mark.parametrize("sizes", [True, False], ids=["recorded", "of an older version"])
def test_weights_with_holes_are_refused_before_they_are_read(
    saved: Path, sizes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((saved / "plan.json").read_text())
    weights = saved / "weights.safetensors"
    assert record["sizes"] == {"weights.safetensors": weights.stat().st_size}
    if not sizes:
        del record["sizes"]
        (saved / "plan.json").write_text(json.dumps(record))
        load(network(), saved, adapter=NumpyAdapter())
    os.truncate(weights, 2**40)
    monkeypatch.setattr(folder, "sha256_of", lambda file: pytest.fail("is read"))
    with pytest.raises(RankfoldError, match="exchanged" if sizes else "belong to no tensor"):
        load(network(), saved, adapter=NumpyAdapter())
