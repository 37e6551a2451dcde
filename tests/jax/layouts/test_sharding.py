"""Names, shardings and dtypes of a layer's arrays, handed on to its stages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from rankfold_jax.layouts.sharding import Axes, epsilon, put, to_array, wide

ROLES = ("group0", "in0", "out0")


def test_axes_keep_their_entries_and_ranks_have_none() -> None:
    axes = Axes(ROLES)
    entries = ("g", "i", "o")
    assert axes.handed_on(entries, ROLES, first=True, last=False) == ("g", "i", None)
    assert axes.handed_on(entries, ROLES, first=False, last=True) == ("g", None, "o")
    assert axes.handed_on(entries, ROLES, first=False, last=False) == ("g", None, None)
    assert axes.handed_on(entries, ("out0", "k0"), first=False, last=True) == ("o", None)
    assert axes.handed_on(("g",), ROLES, first=True, last=True) == ("g", None, None)


def test_a_stage_lies_on_the_mesh_of_its_layer_in_its_dtype() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    spec = PartitionSpec(None, "x", None)
    like = put(np.zeros((2, 4, 6), np.float16), NamedSharding(mesh, spec))
    axes = Axes(ROLES)
    first = axes.placed(np.ones((2, 4, 3)), like, ROLES, first=True, last=False)
    last = axes.placed(np.ones((2, 3, 6)), like, ROLES, first=False, last=True)
    assert (first.dtype, first.sharding.mesh) == (jnp.float16, mesh)
    assert tuple(first.sharding.spec) == (None, "x", None)
    assert set(last.sharding.spec) <= {None}


def test_an_array_that_was_put_on_a_device_stays_there_and_others_are_free() -> None:
    device = jax.devices()[0]
    axes = Axes(ROLES)
    committed = put(np.zeros((2, 4, 6), np.float32), SingleDeviceSharding(device))
    for like, expected in ((committed, True), (jnp.zeros((2, 4, 6)), False)):
        array = axes.placed(np.ones((2, 4, 3)), like, ROLES, first=True, last=False)
        assert array.committed == expected
    shape = jax.ShapeDtypeStruct((2, 4, 6), jnp.bfloat16)
    array = axes.placed(np.ones((2, 4, 3)), shape, ROLES, first=True, last=False)  # type: ignore[arg-type]
    assert (array.dtype, array.committed) == (jnp.bfloat16, False)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_numbers_for_an_op_are_exact(dtype: type) -> None:
    array = jnp.asarray([1 / 3, 2, -5e-3], dtype)
    numbers = to_array(array)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers, np.asarray(array).astype(np.float32))
    assert epsilon(dtype) == float(jnp.finfo(dtype).eps)
    assert wide(array).dtype == np.float64


def test_shapes_are_zeros_and_integers_stay_as_they_are() -> None:
    assert to_array(jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)).tolist() == [[0] * 3] * 2
    steps = jnp.arange(3)
    assert wide(steps) is steps
