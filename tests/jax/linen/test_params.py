"""Parameters of Linen models in their boxes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import rankfold as rf
from rankfold.errors import Refused
from rankfold_jax.layouts.stacks import StackedAxes
from rankfold_jax.linen.params import (
    Refilled,
    check_array,
    double,
    nodes,
    numbers_of,
    put_params,
    refilled_param,
)


def x_of(*shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(1).standard_normal(shape, np.float32))


def test_boxes_are_kept_with_the_names_that_remain() -> None:
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
            scanned = nn.scan(
                Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return nn.Dense(8, kernel_init=init)(scanned()(x, None)[0])

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
            init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            return nn.Dense(6, kernel_init=init)(x), None

    module, x = Boxed(), x_of(2, 6)
    model = module.bind(module.init(jax.random.key(0), x))
    small, variables = rf.compress(model, rf.Ranks(2), inputs=x).model.unbind()
    kernels = variables["params"]["Dense_0"]
    assert kernels["lr0"]["kernel"].names == ("embed", None)
    assert kernels["lr1"]["kernel"].names == (None, "mlp")
    stacked = variables["params"]["ScanLayer_0"]["Dense_0"]
    assert stacked["lr0"]["kernel"].names == ("layers", "in", None)
    assert stacked["lr1"]["kernel"].names == ("layers", None, "out")
    drawn = jax.eval_shape(small.init, jax.random.key(0), x)
    assert jax.tree.structure(drawn) == jax.tree.structure(dict(variables))


def test_arrays_of_other_boxes_and_dtypes_are_refused() -> None:
    check_array("kernel", jnp.ones(3, jnp.bfloat16))
    check_array("kernel", nn.Partitioned(jnp.ones(3), ("in",)))
    with pytest.raises(Refused, match="its bias is int32; a float dtype"):
        check_array("bias", jnp.ones(3, jnp.int32))

    class Box(nn.Partitioned):
        pass

    class Other(nn.meta.AxisMetadata[Any]):
        def unbox(self) -> Any:
            return jnp.ones(3)

        def add_axis(self, index: int, params: Any) -> Any:
            return self

        remove_axis = add_axis
        replace_boxed = add_axis

    check_array("kernel", Box(jnp.ones(3), ("in",)))
    with pytest.raises(Refused, match="its kernel is in a Other"):
        check_array("kernel", Other())


def test_numbers_come_out_of_their_box() -> None:
    value = nn.Partitioned(jnp.asarray([1 / 3], jnp.bfloat16), ("in",))
    assert numbers_of(value).dtype == np.float32
    assert double(value).dtype == np.float64
    assert double(value) == np.asarray(value.value).astype(np.float64)


def test_a_refilled_parameter_keeps_its_box_and_dtype() -> None:
    like = nn.Partitioned(jnp.zeros((2, 3), jnp.float16), ("in", "out"))
    refilled = refilled_param(like, np.ones((2, 3)), StackedAxes(), ("in0", "out0"))
    assert refilled.names == ("in", "out")
    assert refilled.value.dtype == jnp.float16
    assert float(refilled.value.sum()) == 6
    bare = refilled_param(jnp.zeros(3), np.ones(3), StackedAxes(), ("out0",))
    assert bare.tolist() == [1, 1, 1]


def test_parameters_of_a_layer_are_exchanged_and_others_stay() -> None:
    params = {"a": {"dense": {"kernel": 1, "bias": 2, "scale": 3}}, "b": {"kernel": 4}}
    put_params(params, ("a", "dense"), Refilled({"kernel": 5}))
    assert params == {"a": {"dense": {"scale": 3, "kernel": 5}}, "b": {"kernel": 4}}


def test_nodes_are_modules_with_parameters_of_their_own() -> None:
    module, x = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]), x_of(2, 5)
    model = module.bind(jax.eval_shape(module.init, jax.random.key(0), x))
    assert {path: set(node) for path, node in nodes(model).items()} == {
        ("layers_0",): {"kernel", "bias"},
        ("layers_2",): {"kernel", "bias"},
    }
