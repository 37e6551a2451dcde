"""The model and its compressed self side by side, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.onnx import graphs
from tests.onnx.graphs import drawn

import rankfold as rf
from rankfold.errors import Refused
from rankfold.ops import Chain, Op
from rankfold.plugins import Calibration, RegressionSums
from rankfold.testing.visits import Visits
from rankfold_onnx.layers import layers_of
from rankfold_onnx.paired_run import run_paired
from rankfold_onnx.runs import batch_runs
from rankfold_onnx.stages import Stages, staged

BATCHES = [drawn(8, 12), drawn(6, 12, seed=1)]
X = np.concatenate(BATCHES).astype(np.float64)
W1, B1, W2, B2 = drawn(20, 12), drawn(20), drawn(20, 7, seed=1), drawn(7)


def run(
    visit: Callable[..., Chain], *, sequential: bool = True, refuse: bool = False
) -> dict[str, float]:
    model = graphs.perceptron()
    within, layers = layers_of(model)
    ops = ops_of()

    def build(path: str, chain: Chain) -> Stages:
        if refuse:
            raise Refused("no such nodes")
        return staged(model, layers[path], chain)

    runs = batch_runs(within, layers, Calibration.of(BATCHES, None, None), ops)
    rng = np.random.default_rng(0)
    return run_paired(
        runs,
        {path: OPS[path] for path in ops},
        Visits(visit),
        build,
        sequential=sequential,
        rng=rng,
    )


def ops_of() -> dict[str, Op]:
    return {path: layer.op for path, layer in layers_of(graphs.perceptron())[1].items()}


OPS = ops_of()


def halved(op: Op) -> Chain:
    return (replace(op, weight=op.weight / 2),)


@pytest.mark.parametrize("sequential", [False, True])
def test_sums_and_errors_are_those_of_a_direct_computation(sequential: bool) -> None:
    visited: dict[str, tuple[RegressionSums | None, RegressionSums | None]] = {}

    def visit(path: str, fit: Any, validation: Any) -> Chain:
        visited[path] = fit, validation
        return halved(OPS[path])

    errors = run(visit, sequential=sequential)
    assert list(visited) == ["first", "second"]
    y = X @ W1.T + B1
    small = X @ W1.T / 2 + B1
    assert errors["first"] == pytest.approx(np.linalg.norm(y - small) / np.linalg.norm(y), rel=1e-4)
    inputs = np.maximum(small if sequential else y, 0)
    targets = np.maximum(y, 0) @ W2 + B2
    fit, validation = visited["second"]
    assert fit is not None
    assert validation is not None
    held_out = np.arange(14) % 4 == 3
    assert (fit.count, validation.count) == (int((~held_out).sum()), int(held_out.sum()))
    x, y = inputs[~held_out], targets[~held_out]
    np.testing.assert_allclose(fit.xx[0], x.T @ x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fit.yx[0], y.T @ x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(validation.y[0], targets[held_out].sum(0), rtol=1e-4, atol=1e-4)
    other = inputs @ W2 / 2 + B2
    apart = np.linalg.norm(targets - other) / np.linalg.norm(targets)
    assert errors["second"] == pytest.approx(apart, rel=1e-4)


def test_layers_that_stay_are_without_error_until_one_before_them_changes() -> None:
    assert run(lambda path, *sums: (OPS[path],)) == {"first": 0.0, "second": 0.0}
    errors = run(lambda path, *sums: halved(OPS[path]) if path == "first" else (OPS[path],))
    assert errors["first"] > 0.1
    assert errors["second"] > 0.1


def test_a_chain_that_cannot_be_built_leaves_the_layer() -> None:
    assert run(lambda path, *sums: halved(OPS[path]), refuse=True) == {}


def test_a_batch_that_fails_is_named() -> None:
    model = graphs.perceptron()
    within, layers = layers_of(model)
    runs = batch_runs(within, layers, Calibration.of([drawn(2, 13)], None, None), OPS)
    with pytest.raises(rf.RankfoldError, match="batch 0"):
        run_paired(
            runs,
            OPS,
            Visits(lambda path, *sums: (OPS[path],)),
            lambda path, chain: staged(model, layers[path], chain),
            sequential=True,
            rng=np.random.default_rng(0),
        )
