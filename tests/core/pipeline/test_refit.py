"""A layer that is met part by part is refitted like its parts on their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rankfold.calibration.moments import LayerMoments, RegressionSums
from rankfold.calibration.weighted_norm import Metric, rows_of
from rankfold.errors import Refused
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings
from rankfold.linalg import Array
from rankfold.ops import Conv, Linear, Op, of_groups
from rankfold.ops.reference import reconstruct, relative_distance
from rankfold.pipeline.refit import Refit
from rankfold.pipeline.replacement import Decision
from rankfold.pipeline.ridge_regression import OnSums, regression
from rankfold.plugins.registry import registry
from rankfold.policies.base import Choice

RNG = np.random.default_rng(3)
PARTS = 3
ROWS = 200
OPS: dict[str, tuple[Op, Choice]] = {
    "linear": (
        Linear(RNG.standard_normal((21, 9)), RNG.standard_normal(21), groups=3),
        Choice("svd", (2,)),
    ),
    "kept": (Linear(RNG.standard_normal((21, 9)), groups=3), Choice(None)),
    "groups of parts": (
        Conv(RNG.standard_normal((24, 4, 3, 3)), RNG.standard_normal(24), groups=6),
        Choice("tucker2", (2, 2)),
    ),
    "cp": (Conv(RNG.standard_normal((18, 5, 3, 3)), groups=3), Choice("cp", (3,))),
}


def moments_of(x: Array) -> LayerMoments:
    """Of inputs (rows, groups, d)."""
    inputs = np.einsum("ngi,ngj->gij", x, x) / len(x)
    return LayerMoments(inputs, x.mean(0), None, len(x), 1.0)


def joint(x: Array, y: Array) -> RegressionSums:
    return RegressionSums(
        xx=np.einsum("ngi,ngj->gij", x, x),
        yx=np.einsum("ngi,ngj->gij", y, x),
        x=x.sum(0),
        y=y.sum(0),
        square=np.square(y).sum((0, 2)),
        count=len(x),
        yy=np.einsum("ngi,ngj->gij", y, y),
    )


class Case:
    """A layer of several parts with its inputs in the original and in the compressed model."""

    def __init__(self, name: str, *, same: tuple[int, ...] = ()) -> None:
        self.op, self.choice = OPS[name]
        rows = rows_of(self.op)
        groups, _, width = rows.shape
        rng = np.random.default_rng(0)
        mixed = rng.standard_normal((groups, width, width)) * np.geomspace(1, 0.05, width)
        x = np.einsum("ngi,gij->ngj", rng.standard_normal((ROWS, groups, width)), mixed) + 0.3
        y = np.einsum("god,ngd->ngo", rows, x)
        y = y + (0.0 if self.op.bias is None else self.op.bias.reshape(groups, -1))
        lost = rng.standard_normal((groups, width, width)) * 0.3
        other = x + np.einsum("ngi,gij->ngj", x, lost)
        self.parts = np.arange(groups).reshape(PARTS, -1).tolist()
        for part in same:
            other[:, self.parts[part]] = x[:, self.parts[part]]
        self.x, self.other, self.y = x, other, y

    def layer(self, op: Op, groups: list[int]) -> Layer:
        found = registry().decompositions
        moments = moments_of(self.x[:, groups])
        return Layer(("layer",), lambda: op, Settings(found, "balanced", 0), moments=moments)

    def joints(
        self, groups: list[int], basis: Array | None = None
    ) -> tuple[RegressionSums, RegressionSums]:
        held = np.arange(ROWS) % 4 == 3
        x, y = self.other[:, groups], self.y[:, groups]
        if basis is not None:
            x = np.einsum("rgnp,gnk->rgkp", x.reshape(*x.shape[:2], basis.shape[1], -1), basis)
            x = x.reshape(*x.shape[:2], -1)
        return joint(x[~held], y[~held]), joint(x[held], y[held])

    def refit(self, op: Op, groups: list[int]) -> Refit:
        """With a layer before it that was replaced."""
        first = Linear(RNG.standard_normal((4, 4)))
        before = Layer(
            ("first",), lambda: first, Settings(registry().decompositions, "balanced", 0)
        )
        chosen = {
            "first": (before, Choice("svd", (1,))),
            "layer": (self.layer(op, groups), self.choice),
        }
        made = Refit(chosen, {"first": first, "layer": op}, sequential=True, seed=0)
        made.visit("first", None, None)
        return made

    def alone(self, part: int) -> Decision:
        groups = self.parts[part]
        op = of_groups(self.op, groups, self.op.groups)
        refit = self.refit(op, groups)
        refit.visit("layer", *self.joints(groups))
        return refit.decision("layer")

    def size(self, part: int) -> float:
        return float(np.square(self.y[:, self.parts[part]]).sum())


def same_chain(found: tuple[Op, ...], expected: tuple[Op, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.weight, other.weight, rtol=1e-6, atol=1e-9)
        assert one.groups == other.groups
        if other.bias is not None:
            assert one.bias is not None
            np.testing.assert_allclose(one.bias, other.bias, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("same", [(), (1,)])
@pytest.mark.parametrize("name", OPS)
def test_part_by_part_like_layers_of_their_own(name: str, same: tuple[int, ...]) -> None:
    case = Case(name, same=same)
    op = case.op
    before = op.weight.copy()
    refit = case.refit(op, list(range(op.groups)))
    alone = [case.alone(part) for part in range(PARTS)]
    for part in (2, 0, 1):
        groups = case.parts[part]
        chain = refit.visit("layer", *case.joints(groups), groups)
        assert len(chain[-1].weight) == len(op.weight) // PARTS
        if alone[part].layer.refit:
            assert alone[part].chain is not None
            same_chain(chain, alone[part].chain)
    decision = refit.decision("layer")
    done = decision.layer
    assert done.refit == any(one.layer.refit for one in alone)
    assert done.refit
    assert decision.chain is not None
    for part, one in enumerate(alone):
        if one.layer.refit:
            assert one.chain is not None
            groups = case.parts[part]
            same_chain(
                tuple(of_groups(stage, groups, op.groups) for stage in decision.chain), one.chain
            )
    np.testing.assert_array_equal(op.weight, before)
    if all(one.layer.refit for one in alone) and done.method is not None:
        sizes = [case.size(part) for part in range(PARTS)]
        parts = [one.layer.predicted for one in alone]
        assert done.predicted == pytest.approx(
            np.sqrt(np.average(np.square(parts), weights=sizes)), rel=1e-6
        )
    if done.method is not None:
        dense = reconstruct(op, decision.chain)
        assert done.error == pytest.approx(relative_distance(op.weight, dense))
    assert (done.sensitivity is None) == (name != "cp")


def test_a_part_without_sums_leaves_the_prediction_open() -> None:
    case = Case("linear")
    refit = case.refit(case.op, [0, 1, 2])
    fit, held = case.joints([0])
    refit.visit("layer", fit, held, [0])
    assert refit.decision("layer").layer.predicted is not None
    kept = refit.visit("layer", None, None, [1, 2])
    done = refit.decision("layer")
    assert done.layer.refit
    assert done.layer.predicted is None
    assert done.chain is not None
    same_chain(tuple(of_groups(stage, [1, 2], 3) for stage in done.chain), kept)


def test_parts_before_the_first_replaced_layer_stay() -> None:
    case = Case("kept")
    layer = case.layer(case.op, [0, 1, 2])
    other = Linear(RNG.standard_normal((4, 4)))
    after = Layer(("after",), lambda: other, Settings(registry().decompositions, "balanced", 0))
    chosen = {"layer": (layer, Choice(None)), "after": (after, Choice("svd", (1,)))}
    refit = Refit(chosen, {"layer": case.op, "after": other}, sequential=True, seed=0)
    (first,) = refit.visit("layer", *case.joints([0]), [0])
    np.testing.assert_array_equal(first.weight, case.op.weight[:7])
    assert refit.decision("layer").chain is None
    refit.visit("after", None, None)
    refit.visit("layer", *case.joints([1]), [1])
    done = refit.decision("layer")
    assert done.layer.refit
    assert done.layer.method is None
    assert done.chain is not None
    np.testing.assert_array_equal(done.chain[0].weight[:7], case.op.weight[:7])
    np.testing.assert_array_equal(done.chain[0].weight[14:], case.op.weight[14:])
    assert not np.allclose(done.chain[0].weight[7:14], case.op.weight[7:14])


def test_without_a_refit_parts_are_those_of_the_chain() -> None:
    case = Case("linear")
    chosen = {"layer": (case.layer(case.op, [0, 1, 2]), case.choice)}
    refit = Refit(chosen, {"layer": case.op}, sequential=False, seed=0)
    parts = [refit.visit("layer", *case.joints([part]), [part]) for part in range(3)]
    decision = refit.decision("layer")
    assert not decision.layer.refit
    assert decision.layer.predicted is not None
    assert decision.chain is not None
    for place, stage in enumerate(decision.chain):
        whole = np.concatenate([part[place].weight for part in parts])
        np.testing.assert_array_equal(whole, stage.weight)


def test_a_refit_that_loses_on_what_was_held_out_is_not_taken() -> None:
    case = Case("linear")
    refit = case.refit(case.op, [0, 1, 2])
    fit, held = case.joints([0, 1, 2])
    misled = replace(fit, yx=-fit.yx, y=-fit.y)
    before = refit.visit("layer", misled, held)
    done = refit.decision("layer")
    assert done.layer.method == "svd"
    assert not done.layer.refit
    assert done.chain is not None
    same_chain(before, done.chain)


def test_the_noise_of_a_gain_is_its_spread_over_samples() -> None:
    rng = np.random.default_rng(1)
    op = Linear(rng.standard_normal((6, 5)), rng.standard_normal(6))
    assert op.bias is not None
    layers = [replace(op, weight=op.weight + 0.3 * rng.standard_normal((6, 5))) for _ in "ab"]
    metric = Metric(op, moments_of(rng.standard_normal((400, 1, 5))))
    gains, announced = [], []
    for _ in range(300):
        x = rng.standard_normal((40, 1, 5))
        y = np.einsum("od,ngd->ngo", op.weight, x) + op.bias
        y += 0.2 * rng.standard_normal(y.shape)
        sums = joint(x, y)
        on_sums = [OnSums(rows_of(layer), op.bias[None], sums) for layer in layers]
        first, second = (each.squared_error(metric) for each in on_sums)
        gains.append(first - second)
        announced.append(on_sums[0].standard_error(on_sums[1], metric))
    assert np.mean(announced) == pytest.approx(np.std(gains), rel=0.25)


@pytest.mark.parametrize("weighted", ["full", "diagonal", "none"])
def test_the_noise_at_many_outputs_is_an_estimate_of_the_same(
    weighted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    op = Linear(rng.standard_normal((60, 5)), rng.standard_normal(60))
    moments = moments_of(rng.standard_normal((400, 1, 5)))
    half = rng.standard_normal((60, 60)) * np.geomspace(1.0, 0.1, 60)
    full = (half @ half.T)[None]
    grads = {"full": full, "diagonal": np.einsum("goo->go", full), "none": None}[weighted]
    metric = Metric(op, replace(moments, grads=grads))
    x = rng.standard_normal((90, 1, 5))
    y = np.einsum("od,ngd->ngo", op.weight, x) + 0.2 * rng.standard_normal((90, 1, 60))
    assert op.bias is not None
    maps = [rows_of(op) + 0.1 * rng.standard_normal((1, 60, 5)) for _ in "ab"]
    first, second = (OnSums(rows, op.bias[None], joint(x, y)) for rows in maps)
    exact = first.standard_error(second, metric)
    monkeypatch.setattr("rankfold.pipeline.ridge_regression._PROBES", 59)
    assert first.standard_error(second, metric) == pytest.approx(exact, rel=0.3)


def test_no_layer_is_fitted_to_inputs_that_never_vary() -> None:
    rng = np.random.default_rng(3)
    op = Linear(rng.standard_normal((9, 6)), rng.standard_normal(9))
    x = rng.standard_normal((1, 6))
    y = x @ op.weight.T + op.bias
    noise = 1e-7 * rng.standard_normal((1, 6, 6))
    xx = x[:, :, None] * x[:, None, :] * (1.0 + noise + noise.swapaxes(1, 2))
    sums = [xx, y[:, :, None] * x[:, None, :], x, y, np.square(y).sum(1)]
    with pytest.raises(Refused, match="never vary"):
        regression(op, RegressionSums(*(20 * array for array in sums), 20), 1e-3)
