"""The layout of interpolative stages in Flax, and what they compute."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rankfold.errors import Refused
from rankfold.ops import Conv, Linear
from rankfold.ops.interpolation import with_stored_weight
from rankfold.ops.reference import forward
from rankfold_jax.layouts.base import keep
from rankfold_jax.layouts.interpolative import (
    InterpolativeForm,
    interpolative_stage,
    multiplied,
)


def drawn(out: int, into: int, axes: int, *, bias: bool = True) -> Linear | Conv:
    rng = np.random.default_rng(7)
    tall, few, many = out >= into, min(out, into), max(out, into)
    pivots = tuple(sorted(map(int, rng.choice(many, few, replace=False))))
    shape = ((many - few, few) if tall else (few, many - few)) + (1,) * axes
    weight = with_stored_weight(rng.standard_normal(shape, np.float32), pivots, tall=tall)
    added = rng.standard_normal(out, np.float32) if bias else None
    return Conv(weight, added, pivots=pivots) if axes else Linear(weight, added, pivots=pivots)


@pytest.mark.parametrize("axes", range(4))
@pytest.mark.parametrize(("out", "into"), [(11, 4), (3, 13), (6, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_stage_computes_its_op_and_is_read_back(
    axes: int, out: int, into: int, bias: bool
) -> None:
    op = drawn(out, into, axes, bias=bias)
    stage = interpolative_stage(op)
    form = stage.form
    assert isinstance(form, InterpolativeForm)
    assert stage.kernel.shape == (1, *form.kernel_shape)
    assert form.inputs == into
    assert len(form.roles) == stage.kernel.ndim - 1
    ends = {"first": out < into, "last": out >= into}
    assert not any(keep(role, **ends) for role in form.roles[axes:])
    again = form.op(stage.kernel, stage.bias)
    assert again.pivots == op.pivots
    assert np.array_equal(again.weight, op.weight)
    x = np.random.default_rng(1).standard_normal((2, into, *(5, 3, 4)[:axes])).astype(np.float32)
    biases = None if stage.bias is None else stage.bias[0]
    y = form.apply(jnp.moveaxis(x, 1, -1), jnp.asarray(stage.kernel[0]), biases, multiplied)
    assert np.allclose(np.moveaxis(np.asarray(y), -1, 1), forward(op, x), atol=1e-5)


def test_channels_are_split_into_the_axes_of_the_output() -> None:
    op = drawn(12, 5, 0)
    stage = interpolative_stage(op, (3, 4))
    x = np.random.default_rng(1).standard_normal((2, 7, 5)).astype(np.float32)
    y = stage.form.apply(x, stage.kernel[0], stage.bias[0], multiplied)
    assert y.shape == (2, 7, 3, 4)
    assert np.allclose(np.asarray(y).reshape(2, 7, 12), forward(op, x), atol=1e-5)
    assert stage.form.bias_shape == (3, 4)
    assert stage.form.bias_roles == ("out0", "out1")


def test_forms_are_equal_and_hash_alike_by_value() -> None:
    one, other = (interpolative_stage(drawn(11, 4, 0)).form for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != interpolative_stage(drawn(11, 5, 0)).form


def test_a_stack_is_refused() -> None:
    stage = interpolative_stage(drawn(11, 4, 0))
    with pytest.raises(Refused, match="a stack of 2 interpolative layers"):
        stage.form.op(np.concatenate([stage.kernel] * 2), None)
