"""The same weights in PyTorch, NNX and Linen give the same plan and the same outputs."""

from __future__ import annotations

import subprocess
import sys
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from tests.journeys.frameworks import FRAMEWORKS, X

import rankfold as rf

PLANNED = attrgetter("path", "method", "ranks", "params", "macs", "op")
REFITTED = attrgetter("path", "method", "ranks", "refit")


def compressed(framework: str, policy: Any) -> tuple[rf.Plan, np.ndarray]:
    model, x = FRAMEWORKS[framework].network()
    small = rf.compress(model, policy, inputs=x)
    return small.plan, FRAMEWORKS[framework].outputs(small.model, x)


@pytest.mark.parametrize("policy", [rf.VBMF(), rf.Energy(0.9), rf.Ratio(0.4)], ids=repr)
@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_plans_and_outputs_are_those_of_torch(framework: str, policy: Any) -> None:
    plan, output = compressed(framework, policy)
    expected_plan, expected = compressed("torch", policy)
    assert len(plan.replaced) >= 2
    for layer, wanted in zip(plan.layers, expected_plan.layers, strict=True):
        assert PLANNED(layer) == PLANNED(wanted)
        if wanted.error is not None:
            assert layer.error == pytest.approx(wanted.error, rel=1e-6)
    assert np.linalg.norm(output - expected) <= 1e-5 * np.linalg.norm(expected)


def calibrated(framework: str) -> tuple[rf.Moments, rf.Plan, np.ndarray]:
    """Moments, plan and outputs with a loss that draws nothing and positions that are all taken."""
    model, _ = FRAMEWORKS[framework].network()
    rng = np.random.default_rng(3)
    x = rng.standard_normal((18, *X.shape[1:])).astype(np.float32)
    target = rng.standard_normal((18, 40)).astype(np.float32)
    batches: list[Any] = [(x[start : start + 9], target[start : start + 9]) for start in (0, 9)]
    if framework == "torch":
        tensors = [(torch.from_numpy(np.moveaxis(a, -1, 1).copy()), b) for a, b in batches]
        batches = [(a, torch.from_numpy(b)) for a, b in tensors]

    def loss(outputs: Any, batch: Any) -> Any:
        return ((outputs - batch[1]) ** 2).mean(0).sum()

    options = {"inputs": batches[0][0], "calibration": batches, "loss": loss}
    moments = rf.gather(model, batches, inputs=batches[0][0], loss=loss)
    small = rf.compress(model, rf.Budget(macs=0.3), **options)
    return moments, small.plan, FRAMEWORKS[framework].outputs(small.model, batches[1][0])


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_moments_plan_and_refit_are_those_of_torch(framework: str) -> None:
    moments, plan, output = calibrated(framework)
    wanted, expected_plan, expected = calibrated("torch")
    assert list(moments) == list(wanted)
    for path in wanted:
        assert (moments[path].samples, moments[path].positions_per_example) == (
            wanted[path].samples,
            wanted[path].positions_per_example,
        )
        for name in ("inputs", "mean", "grads"):
            found, array = getattr(moments[path], name), getattr(wanted[path], name)
            assert np.linalg.norm(found - array) <= 1e-5 * np.linalg.norm(array)
    assert len(plan.replaced) >= 2
    for layer, other in zip(plan.layers, expected_plan.layers, strict=True):
        assert REFITTED(layer) == REFITTED(other)
        if other.measured is not None:
            assert layer.measured == pytest.approx(other.measured, rel=1e-3)
    assert plan.loss == pytest.approx(expected_plan.loss, rel=1e-3)
    assert np.linalg.norm(output - expected) <= 1e-3 * np.linalg.norm(expected)


def loaded(code: str) -> set[str]:
    """The frameworks that a fresh process has imported after running some code."""
    names = ("torch", "jax", "flax", "tensorflow", "onnx")
    report = f"\nimport sys; print(*[n for n in {names!r} if n in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code + report], check=True, capture_output=True, text=True
    )
    return set(found.stdout.split())


def test_compressing_a_torch_model_loads_no_jax() -> None:
    code = """
import torch, rankfold as rf
model = torch.nn.Sequential(torch.nn.Linear(8, 8))
rf.compress(model, rf.Ranks(2), inputs=torch.zeros(1, 8))
"""
    assert loaded(code) == {"torch"}


def test_compressing_a_flax_model_loads_no_torch() -> None:
    code = """
import jax.numpy as jnp, rankfold as rf
from flax import nnx
rf.compress(nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0))), rf.Ranks(2), inputs=jnp.zeros(8))
"""
    assert loaded(code) == {"jax", "flax"}


def test_listing_plugins_loads_no_framework() -> None:
    assert (
        loaded("import rankfold; from rankfold.plugins.registry import registry; registry()")
        == set()
    )
