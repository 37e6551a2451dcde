"""Noise at the output of a layer tells what the gradient there would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tests.onnx import graphs
from tests.onnx.graphs import drawn, node

import rankfold as rf

OUT = drawn(40, 30, seed=3)


def model() -> Any:
    """Two layers of which one leads to the output through a known matrix, scaled by 100 and 1."""
    nodes = [
        node("MatMul", "x w", "h", "weighty"),
        node("MatMul", "x v", "g", "light"),
        node("Mul", "h hundred", "hh"),
        node("Add", "hh g", "s"),
        node("MatMul", "s out", "y", "last"),
    ]
    tensors = {
        "w": drawn(20, 40),
        "v": drawn(20, 40, seed=1),
        "out": OUT,
        "hundred": np.float32(100),
    }
    return graphs.model(nodes, tensors, {"x": ["n", 20]}, {"y": ["n", 30]})


BATCHES = [drawn(8, 20, seed=seed) * 4 for seed in range(4)]


def test_of_a_linear_model_it_is_the_mean_square_of_its_matrix() -> None:
    moments = rf.gather(model(), BATCHES)
    expected = np.square(OUT).sum() / 40
    # The mean over 8 examples of quadratic forms in 40 numbers each.
    assert moments["light"].grads[0] == pytest.approx(np.full(40, expected), rel=0.3)
    assert moments["weighty"].grads[0] == pytest.approx(np.full(40, 1e4 * expected), rel=0.3)
    assert moments["last"].grads[0] == pytest.approx(np.ones(30), rel=0.3)


def test_a_loss_of_the_users_is_differentiated_by_noise_too() -> None:
    # A mean over the examples of a sum over 30 outputs: the gradient of the summed loss is 1.
    moments = rf.gather(model(), BATCHES, loss=lambda outputs, batch: outputs.sum(1).mean())
    # One number a draw: 32 draws of a squared normal.
    assert moments["last"].grads[0] == pytest.approx(np.ones(30), rel=0.8)
    ratio = moments["weighty"].grads[0, 0] / moments["light"].grads[0, 0]
    assert 2e3 < ratio < 5e4


def test_cross_entropy_has_the_fisher_information() -> None:
    weight = drawn(20, 5)
    nodes = [node("MatMul", "x w", "y", "head")]
    classifier = graphs.model(nodes, {"w": weight}, {"x": ["n", 20]}, {"y": ["n", 5]})
    batches = [drawn(16, 20, seed=seed) * 4 for seed in range(2)]
    moments = rf.gather(classifier, batches, loss="cross_entropy")
    scores = np.concatenate(batches)[:8] @ weight
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    fisher = (shares * (1 - shares)).sum(1).mean() / 5
    assert moments["head"].grads[0] == pytest.approx(np.full(5, fisher), rel=0.6)


@pytest.mark.parametrize("squash", ["Softmax", "Sigmoid"])
def test_probabilities_are_taken_for_what_they_are(squash: str) -> None:
    one = squash == "Sigmoid"
    nodes = [node("MatMul", "x w", "h", "body"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    tensors = {"w": drawn(20, 12), "v": drawn(12, 1 if one else 5)}
    shapes = {"x": ["n", 20]}, {"y": ["n", 1 if one else 5]}
    logits = graphs.model(nodes, tensors, *shapes)
    nodes[-1].output[0] = "scores"
    shares = graphs.model([*nodes, node(squash, "scores", "y")], tensors, *shapes)
    expected = rf.gather(logits, BATCHES, loss="cross_entropy")["body"].grads
    actual = rf.gather(shares, BATCHES, loss="cross_entropy")["body"].grads
    assert actual == pytest.approx(expected, rel=1e-2)
    small = rf.compress(shares, rf.Ranks(4), calibration=BATCHES, loss="cross_entropy")
    same = rf.compress(logits, rf.Ranks(4), calibration=BATCHES, loss="cross_entropy")
    assert small.plan.loss == pytest.approx(same.plan.loss, rel=1e-2, abs=1e-6)


def test_a_layer_without_a_say_counts_for_nothing() -> None:
    nodes = [
        node("MatMul", "x w", "h", "idle"),
        node("Mul", "h zero", "z"),
        node("MatMul", "x v", "g", "busy"),
        node("Add", "z g", "y"),
    ]
    tensors = {"w": drawn(20, 9), "v": drawn(20, 9, seed=1), "zero": np.float32(0)}
    whole = graphs.model(nodes, tensors, {"x": ["n", 20]}, {"y": ["n", 9]})
    moments = rf.gather(whole, BATCHES)
    assert not moments["idle"].grads.any()
    assert moments["busy"].grads.all()


def test_batches_of_one_size_are_tried_as_they_are() -> None:
    nodes = [
        node("MatMul", "x w", "h", "a"),
        node("Relu", "h", "r"),
        node("MatMul", "r v", "y", "b"),
    ]
    tensors = {"w": drawn(20, 12), "v": drawn(12, 6)}
    fixed = graphs.model(nodes, tensors, {"x": [16, 20]}, {"y": [16, 6]})
    batches = [drawn(16, 20, seed=seed) for seed in range(2)]
    small = rf.compress(fixed, rf.Budget(params=0.7), inputs=batches[0], calibration=batches)
    assert small.plan.model_params[1] <= 0.7 * small.plan.model_params[0]
    with pytest.raises(rf.RankfoldError, match="the model fails on batch 0 with InvalidArgument"):
        rf.gather(fixed, [batches[0][:12], batches[1]])
