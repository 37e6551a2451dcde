"""The weights of a factory's model."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
import torch
from rankfold_numpy.adapter import NumpyAdapter, arrays
from rankfold_numpy.framework import Dense, Model
from safetensors.numpy import save_file
from safetensors.torch import load_file
from tests.core.cli.commands import Run, network

from rankfold.cli import weights
from rankfold.cli.weights import filled
from rankfold.errors import RankfoldError

MODEL = ("compress", "mymodels:make", "--weights", "w.safetensors")
POLICY = ("--policy", "energy:0.6")


def test_a_key_chooses_the_weights_of_a_factory(folder: Path, run: Run) -> None:
    state = network().state_dict()
    halves = {name: value / 2 for name, value in state.items()}
    torch.save({"raw": halves, "ema": state}, folder / "two.pt")
    what = (*MODEL[:3], "two.pt", *POLICY)
    told = run(*what, "--dry-run", cwd=folder)
    assert told.returncode == 2
    assert "'raw', 'ema'" in told.stderr
    assert "--key" in told.stderr
    assert run(*what, "--key", "ema", "-o", "a", cwd=folder).returncode == 0
    assert run(*MODEL, *POLICY, "-o", "b", cwd=folder).returncode == 0
    first, second = (load_file(folder / out / "weights.safetensors") for out in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def _numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    known = types.SimpleNamespace(adapter=lambda model: NumpyAdapter())
    monkeypatch.setattr(weights, "registry", lambda: known)


@pytest.mark.usefixtures("_numpy")
def test_a_model_of_any_framework_is_filled(tmp_path: Path) -> None:
    kernel = np.arange(35, dtype=np.float32).reshape(7, 5)
    save_file({"0.kernel": kernel}, tmp_path / "w.safetensors")
    model = filled(Model([Dense(np.zeros((7, 5), np.float32))]), tmp_path / "w.safetensors", None)
    assert np.array_equal(arrays(model)["0.kernel"], kernel)
    with pytest.raises(RankfoldError, match=r"0\.kernel"):
        filled(Model([Dense(np.zeros((7, 4), np.float32))]), tmp_path / "w.safetensors", None)


@pytest.mark.usefixtures("_numpy")
def test_the_state_of_a_key_is_handed_on_as_a_file(tmp_path: Path) -> None:
    states = {
        name: {"0.kernel": torch.full((7, 5), value)} for name, value in (("a", 1.0), ("b", 2.0))
    }
    torch.save(states, tmp_path / "w.pt")
    model = filled(Model([Dense(np.zeros((7, 5), np.float32))]), tmp_path / "w.pt", "b")
    assert set(arrays(model)["0.kernel"].ravel()) == {2.0}
