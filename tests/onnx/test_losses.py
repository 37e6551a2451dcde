"""Losses of a change of a model's outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from onnx import numpy_helper
from tests.onnx import graphs
from tests.onnx.graphs import drawn, node

import rankfold as rf
from rankfold.plugins import Calibration
from rankfold_onnx.losses import change, divergence, squash_of

BATCHES = [graphs.images(16, seed) for seed in range(6)]


@pytest.mark.parametrize("loss", ["cross_entropy", "outputs", "own"])
def test_losses_are_measured(loss: str) -> None:
    model, x = graphs.convolutional(), BATCHES[0][:1]
    judged: Any = loss
    if loss == "own":

        def judged(outputs: np.ndarray, batch: np.ndarray) -> float:
            assert len(outputs) == len(batch)
            return float(np.square(outputs).mean())

    small = rf.compress(model, rf.Ratio(0.5), inputs=x, calibration=BATCHES, loss=judged)
    before, after = small.plan.loss
    assert (before > 0) == (loss == "own")
    assert 0 < after < 10


def softmaxed(last: str = "Softmax") -> Any:
    nodes = [node("MatMul", "x w", "h"), node(last, "h", "s"), node("Identity", "s", "y")]
    return graphs.model(nodes, {"w": drawn(6, 4)}, {"x": ["n", 6]}, {"y": ["n", 4]})


@pytest.mark.parametrize(
    ("last", "squash"), [("Softmax", "Softmax"), ("Sigmoid", "Sigmoid"), ("Relu", "")]
)
def test_probabilities_are_told_from_logits(last: str, squash: str) -> None:
    assert squash_of(softmaxed(last)) == squash


def worth(loss: Any, first: Any, second: Any, squash: str = "") -> float:
    calibration = Calibration.of([drawn(5, 6)], None, loss)
    return change(calibration, 0, 5, first, second, squash)


def test_a_change_is_worth_what_a_direct_computation_gives() -> None:
    a, b = drawn(5, 4).astype(np.float64), drawn(5, 4, seed=1).astype(np.float64)
    assert worth("outputs", [a, a], [b, a]) == pytest.approx(np.square(a - b).sum())
    lost = np.where(np.arange(4) == 2, np.inf, a)
    assert worth("outputs", [lost], [b]) == pytest.approx(np.square((a - b)[:, [0, 1, 3]]).sum())
    p, q = (v - np.log(np.exp(v).sum(1, keepdims=True)) for v in (a, b))
    apart = 2 * (np.exp(p) * (p - q)).sum()
    assert worth("cross_entropy", [a], [b]) == pytest.approx(apart, rel=1e-5)
    shares = worth("cross_entropy", [np.exp(p)], [np.exp(q)], "Softmax")
    assert shares == pytest.approx(apart, rel=1e-4)
    judged = worth(lambda outputs, batch: outputs.mean(), [a], [b])
    assert judged == pytest.approx((5 * (b.mean() - a.mean())) ** 2)


def test_a_sigmoid_is_a_yes_or_no_for_each_number() -> None:
    a, b = (1 / (1 + np.exp(-drawn(5, 4, seed=seed).astype(np.float64))) for seed in (0, 1))
    apart = a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))
    assert worth("cross_entropy", [a], [b], "Sigmoid") == pytest.approx(2 * apart.sum(), rel=1e-5)
    certain = worth("cross_entropy", [np.ones((5, 4))], [np.ones((5, 4))], "Sigmoid")
    assert certain == pytest.approx(0, abs=1e-9)


def test_the_distance_of_two_models_is_the_mean_over_the_examples() -> None:
    model, small = softmaxed(), softmaxed()
    small.graph.initializer[0].CopyFrom(numpy_helper.from_array(drawn(6, 4, seed=1), "w"))
    batches = [drawn(5, 6), drawn(3, 6, seed=2)]
    first, second = divergence(model, small, Calibration.of(batches, None, "cross_entropy"))
    x = np.concatenate(batches)
    p, q = (graphs.run(m, x=x).astype(np.float64) for m in (model, small))
    assert first == 0
    assert second == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)
    with pytest.raises(rf.RankfoldError, match="batch 1"):
        divergence(model, small, Calibration.of([batches[0], drawn(3, 5)], None, "outputs"))


def test_outputs_and_losses_of_other_kinds_are_named() -> None:
    with pytest.raises(rf.RankfoldError, match="no floating-point outputs"):
        worth("outputs", [np.arange(3)], [np.arange(3)])
    with pytest.raises(rf.RankfoldError, match="no axis of classes"):
        worth("cross_entropy", [np.ones(())], [np.ones(())])
    with pytest.raises(rf.RankfoldError, match=r"gave shape \(2,\); return one number"):
        worth(lambda outputs, batch: np.ones(2), [drawn(5, 4)], [drawn(5, 4)])
