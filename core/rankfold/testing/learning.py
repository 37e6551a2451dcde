"""Checks of an adapter that implements `Calibrates`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankfold.adapters.capabilities import capabilities
from rankfold.calibration.batches import Calibration
from rankfold.calibration.moments import LayerMoments, RegressionSums
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.calibration.weighted_norm import rows_of
from rankfold.linalg import Array
from rankfold.ops import Chain, Embedding, Op, with_weight
from rankfold.ops.reference import forward
from rankfold.testing.assertions import fresh_adapter, only_path, unchanged
from rankfold.testing.cases import BRIEF, WIDE, probe, supported
from rankfold.testing.check import check
from rankfold.testing.harness import Harness, Unsupported
from rankfold.testing.visits import Visits

_EXAMPLES = 4
"""Examples of a batch, of which the calibration set holds out the last."""
# Frameworks add up moments in float32, over all positions of all examples.
_TOLERANCE = 1e-3
_NAMES = (*BRIEF, "convolution, grouped", "convolution, same padding")


@check("read", "trace")
def check_moments(harness: Harness) -> None:
    """The moments of inputs are those of the rows that the op's weight meets."""
    for name, op, model in supported(harness, names=(*_NAMES, *WIDE)):
        adapter, path, x = _data_aware(harness, model, op)
        calibration = Calibration.of([harness.inputs(part) for part in _halves(x)], None, None)
        before = harness.state(model)
        rng = np.random.default_rng(0)
        actual = adapter.moments(model, calibration, {path: op}, rng, lambda item: None)
        unchanged(name, before, harness.state(model))
        assert path in actual, f"{name}: no moments of {path!r}, which runs"
        moments = actual[path]
        rows = _rows(op, x)
        _near(name, *_second_moments(op, moments, rows), "second moment of the inputs")
        _near(name, moments.mean, rows.mean(0), "mean of the inputs")
        assert moments.samples == len(x), f"{name}: {moments.samples} examples of {len(x)}"
        wanted = len(rows) / len(x)
        assert moments.positions_per_example == wanted, (
            f"{name}: {moments.positions_per_example} uses an example, not {wanted}"
        )
        assert moments.grads is not None, f"{name}: no moment of the gradients"


@check("read", "trace")
def check_follow(harness: Harness) -> None:
    """Layers are met with their own inputs and outputs, and errors are those of the chains."""
    for name, op, model in supported(harness, names=(*_NAMES, *WIDE)):
        # A chain that gives the outputs times a factor f has a relative error of exactly 1 − f,
        # whatever the inputs are, and none for f = 1.
        _followed(harness, name, op, model, 1.0, None)
        # The same of two mixtures of the channels, in place of the rows.
        shape = (op.groups, op.weight.shape[1], 2)
        basis = np.random.default_rng(1).standard_normal(shape)
        _followed(harness, name, op, model, 0.5, None if isinstance(op, Embedding) else basis)


@check("read", "trace")
def check_refilled(harness: Harness) -> None:
    """A layer with other numbers in it is read back with those."""
    for name, op, model in supported(harness):
        adapter, path, x = _data_aware(harness, model, op)
        before = harness.state(model)
        new = _scaled(op, 2.0)
        other = adapter.replace(model, {path: adapter.refilled(model, path, new)}, inplace=False)
        unchanged(name, before, harness.state(model))
        expected = forward(new, x[:2])
        _near(name, harness.call(other, x[:2]), expected, "output of the refilled layer")
        assert set(harness.state(other)) == set(before), f"{name}: other parameters than before"


def _followed(
    harness: Harness, name: str, op: Op, model: Any, factor: float, basis: Array | None
) -> None:
    adapter, path, x = _data_aware(harness, model, op)
    calibration = Calibration.of([harness.inputs(part) for part in _halves(x)], None, None)
    visits: list[tuple[RegressionSums | None, RegressionSums | None]] = []

    def visit(
        path: str,
        fit: RegressionSums | None,
        validation: RegressionSums | None,
        groups: Sequence[int] | None = None,
        /,
    ) -> Chain:
        assert groups is None, f"{name}: groups {groups} of a layer that is called as a whole"
        visits.append((fit, validation))
        return (_scaled(op, factor),)

    visitor = Visits(visit, {} if basis is None else {path: basis})
    rng = np.random.default_rng(0)
    errors: Mapping[str, float] = adapter.run_paired(
        model, calibration, {path: op}, visitor, sequential=True, rng=rng
    )
    assert len(visits) == 1, f"{name}: visited {len(visits)} times"
    off = abs(errors[path] - (1.0 - factor))
    assert off < _TOLERANCE, f"{name}: an error of {errors[path]:.3g}, not {1.0 - factor}"
    if isinstance(op, Embedding):
        return
    if name in WIDE and basis is None:
        assert visits[0] == (None, None), f"{name}: sums over patches that are too wide for them"
        return
    rows = _rows(op, x)
    y = np.einsum("god,ngd->ngo", rows_of(op).astype(np.float64), rows)
    y = y + (0.0 if op.bias is None else op.bias.reshape(op.groups, -1))
    if basis is not None:
        name = f"{name}, projected"
        split = rows.reshape(len(rows), op.groups, basis.shape[1], -1)
        rows = np.einsum("rgnp,gnk->rgkp", split, basis).reshape(len(rows), op.groups, -1)
    # Every fourth example, with all of its positions: positions of one example are alike, and one
    # that is fitted tells of the others.
    held_out = np.repeat(np.arange(len(x)) % _EXAMPLES == _EXAMPLES - 1, len(rows) // len(x))
    _sums_are_of(name, visits[0], rows, y, held_out)


def _sums_are_of(
    name: str,
    sums: tuple[RegressionSums | None, RegressionSums | None],
    rows: Array,
    y: Array,
    held_out: Array,
) -> None:
    for part_sums, part_rows in zip(sums, (~held_out, held_out), strict=True):
        assert part_sums is not None, f"{name}: no sums over its inputs"
        assert part_sums.count == part_rows.sum(), (
            f"{name}: {part_sums.count} positions, not {part_rows.sum()}"
        )
        crossed = np.einsum("ngo,ngd->god", y[part_rows], rows[part_rows])
        _near(name, part_sums.yx, crossed, "sum of y xᵀ")
        _near(
            name,
            part_sums.xx,
            np.einsum("ngi,ngj->gij", rows[part_rows], rows[part_rows]),
            "sum of x xᵀ",
        )
        _near(name, part_sums.y, y[part_rows].sum(0), "sum of y")
        _near(name, part_sums.square, np.square(y[part_rows]).sum((0, 2)), "sum of squares of y")
    validation = sums[1]
    assert validation is not None
    assert validation.yy is not None, f"{name}: no sum of y yᵀ over held-out positions"
    part = y[held_out]
    _near(name, validation.yy, np.einsum("ngi,ngj->gij", part, part), "sum of y yᵀ")


def _data_aware(harness: Harness, model: Any, op: Op) -> tuple[Any, str, Array]:
    """Return a fresh adapter, the path of the layer and inputs of a few examples."""
    adapter = fresh_adapter(harness, model, op)
    if capabilities(adapter).calibrates is None:
        raise Unsupported("calibration data: its adapter does not calibrate")
    x = np.concatenate([probe(op, seed) for seed in range(_EXAMPLES)])[:_EXAMPLES]
    return adapter, only_path(adapter, model), x


def _second_moments(op: Op, moments: LayerMoments, rows: Array) -> tuple[Array, Array]:
    """Return the second moment of the inputs that was gathered, and that of rows (n, groups, d)."""
    if isinstance(op, Embedding):
        assert not isinstance(moments.inputs, SeparableMoment)
        return moments.inputs, rows.mean(0)
    seen = np.moveaxis(rows, 0, 1)
    if not isinstance(moments.inputs, SeparableMoment):
        return moments.inputs, seen.mT @ seen / len(rows)
    # The matrix would be a large one; of so few rows, in whose span all of it is, a sketch is exact
    # but for rounding.
    centred = seen - seen.mean(1, keepdims=True)
    return moments.inputs.products(seen), seen @ centred.mT @ centred / len(rows)


def _halves(x: Array) -> tuple[Array, Array]:
    return x[: len(x) // 2], x[len(x) // 2 :]


def _rows(op: Op, x: Array) -> Array:
    """(rows, groups, d): what the reference gives for a weight that is the identity."""
    if isinstance(op, Embedding):
        return np.eye(len(op.weight))[x.reshape(-1)][:, None]
    # A weight whose rows are unit vectors copies each number that an output depends on: so the
    # reference itself says what a patch is, with strides, padding and groups. Each channel is a
    # group of its own, or nearly all of a wide weight would be zeros to multiply with.
    channels, taps = op.groups * op.weight.shape[1], op.weight[0, 0].size
    eye = np.tile(np.eye(taps), (channels, 1)).reshape(-1, 1, *op.weight.shape[2:])
    y = forward(replace(op, weight=eye, bias=None, groups=channels), x)
    spatial = op.weight.ndim > 2
    return (np.moveaxis(y, 1, -1) if spatial else y).reshape(-1, op.groups, op.weight[0].size)


def _scaled(op: Op, factor: float) -> Op:
    scaled = with_weight(op, (op.weight * factor).astype(op.weight.dtype))
    if isinstance(scaled, Embedding) or scaled.bias is None:
        return scaled
    return replace(scaled, bias=(scaled.bias * factor).astype(scaled.bias.dtype))


def _near(name: str, actual: Array, expected: Array, what: str) -> None:
    assert actual.shape == expected.shape, f"{name}: {what} has shape {actual.shape}"
    off = float(np.linalg.norm(actual - expected)) / max(float(np.linalg.norm(expected)), 1e-30)
    assert off <= _TOLERANCE, f"{name}: the {what} is off by {off:.3g}"
