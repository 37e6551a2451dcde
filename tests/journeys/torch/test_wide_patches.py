"""Layers with patches too wide for a moment of their own are compressed as others are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.calibration import moments as forms
from rankfold.calibration import patch_sketch
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.ops.reference import relative_distance

KERNEL, LIMIT = 9, 100
WIDE = ("2", "4")


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "PATCH_LIMIT", LIMIT)
    monkeypatch.setattr(patch_sketch, "COLUMNS", 24)


def network() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv1d
    return nn.Sequential(
        conv(1, 16, 5, padding=2),
        nn.ReLU(),
        conv(16, 24, KERNEL, padding=4),
        nn.ReLU(),
        conv(24, 20, KERNEL, padding=4, stride=2, bias=False),
        nn.ReLU(),
        conv(20, 6, 1),
    ).eval()


def sounds(count: int, seed: int) -> torch.Tensor:
    """Sums of a few sines: neighbours are alike, as in what networks are trained on."""
    rng = np.random.default_rng(seed)
    pitch, phase = rng.uniform(0.02, 0.4, (2, count, 3, 1))
    waves = np.sin(pitch * np.arange(64) + 20 * phase).sum(1)[:, None]
    return torch.from_numpy(waves.astype(np.float32))


def batches() -> Sequence[torch.Tensor]:
    return sounds(256, 0).split(64)


def distance(small: nn.Module) -> float:
    x = sounds(40, 1)
    with torch.no_grad():
        return relative_distance(network()(x).numpy(), small(x).numpy())


def compressed(**options: object) -> rf.Compressed:
    calibration = None if options.get("moments") == "none" else batches()
    options = {name: value for name, value in options.items() if value != "none"}
    policy = rf.Budget(macs=0.35)
    x = sounds(1, 2)
    return rf.compress(network(), policy, inputs=x, calibration=calibration, **options)


@pytest.mark.usefixtures("small_limits")
def test_predicted_errors_are_the_measured_ones() -> None:
    plan = compressed(refit=False).plan
    for path in WIDE:
        layer = plan[path]
        assert layer.method is not None
        assert layer.moments == "separable"
        assert layer.predicted == pytest.approx(layer.measured, rel=0.4)


def test_a_sketch_is_nearly_as_good_as_the_moment(request: pytest.FixtureRequest) -> None:
    whole, blind = (
        distance(compressed(refit=False).model),
        distance(compressed(moments="none").model),
    )
    request.getfixturevalue("small_limits")
    assert distance(compressed(refit=False).model) < whole + 0.3 * (blind - whole)


@pytest.mark.usefixtures("small_limits")
def test_the_stages_after_the_first_are_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankfold.pipeline.refit_problem.WIDE", LIMIT)
    plain, refitted = compressed(refit=False), compressed()
    assert any(refitted.plan[path].refit for path in WIDE)
    assert distance(refitted.model) < distance(plain.model)
    monkeypatch.setattr(forms, "REGRESSOR_LIMIT", 0)
    assert not any(compressed().plan[path].refit for path in WIDE)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("method", ["channel_svd", "tucker2", "cp3"])
def test_moments_of_a_file_give_the_same_plan(tmp_path: Path, method: str) -> None:
    gathered = rf.gather(network(), batches(), inputs=sounds(1, 2))
    gathered.save(tmp_path / "moments")
    loaded = rf.Moments.load(tmp_path / "moments")
    plans = [
        rf.plan(network(), rf.Ratio(0.4), inputs=sounds(1, 2), moments=of, methods=method)
        for of in (gathered, loaded)
    ]
    assert plans[0] == plans[1]
    assert all(plans[0][path].method == method for path in WIDE)
    assert all(isinstance(loaded[path].inputs, SeparableMoment) for path in WIDE)
