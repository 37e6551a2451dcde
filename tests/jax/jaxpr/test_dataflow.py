from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.custom_derivatives import linear_call
from jax.sharding import AbstractMesh, PartitionSpec

from rankfold import RankfoldError
from rankfold_jax.calibration.moment_interpreter import Gatherer, empty_moment_tap
from rankfold_jax.jaxpr import dataflow as jaxprs
from rankfold_jax.jaxpr.dataflow import Dataflow, leaves_of
from rankfold_jax.jaxpr.parameter_uses import product
from rankfold_jax.jaxpr.provenance import Provenance
from rankfold_jax.layouts.base import LayerLayout
from rankfold_jax.layouts.conv import ConvForm
from rankfold_jax.layouts.dense import DenseForm
from rankfold_jax.layouts.parameter_index import ParameterIndex
from rankfold_jax.layouts.stacks import StackedAxes

X = np.random.default_rng(1).standard_normal((2, 5)).astype(np.float32)
W = np.random.default_rng(2).standard_normal((5, 5)).astype(np.float32) / 3
STACK = np.random.default_rng(3).standard_normal((4, 5, 5)).astype(np.float32) / 3


def found(function: Callable[..., Any], params: Any, *inputs: Any) -> Dataflow:
    closed, _ = jaxprs.traced(function, params, *inputs)
    return jaxprs.find(closed, [name for name, _ in leaves_of(params)])


def gathered(
    function: Callable[..., Any], kernel: Any, x: Any, form: LayerLayout | None = None
) -> tuple[Any, np.ndarray]:
    """Under jit: what a function of ({"w": kernel}, x) gives, and Σ x xᵀ of its products."""
    form = form or DenseForm((5,), (5,))
    axes = kernel.ndim - len(form.kernel_shape)
    slot = ParameterIndex(
        form, 0, kernel.shape, StackedAxes(tuple(range(axes)), kernel.shape[:axes])
    )
    op = form.op(slot.stack.to_front(kernel), None)
    closed, tree = jaxprs.traced(function, {"w": kernel}, x)

    @jax.jit
    def run(*values: Any) -> Any:
        gatherer = Gatherer(
            {"w": slot}, {"w": op}, 1, jax.random.key(0), {"w": empty_moment_tap(op)}, {}
        )
        return gatherer.run(closed, values)

    outputs, sums = run(kernel, x)
    return jax.tree.unflatten(tree, outputs), np.asarray(sums["w"]["inputs"])


@jax.custom_jvp
def doubled(x: jax.Array) -> jax.Array:
    return 2 * x


doubled.defjvp(lambda primals, tangents: (2 * primals[0], 2 * tangents[0]))


@jax.custom_vjp
def with_weight(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


with_weight.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))

CONSTRUCTS: dict[str, tuple[Callable[..., Any], tuple[int, ...], list[Any]]] = {
    "plain": (lambda p, x: x @ p["w"], (2,), [X]),
    "nested jit": (lambda p, x: jax.jit(jax.jit(lambda a: a @ p["w"]))(x), (2,), [X]),
    "remat": (lambda p, x: jax.checkpoint(lambda a, w: a @ w)(x, p["w"]), (2,), [X]),
    "custom_jvp": (lambda p, x: doubled(x) @ p["w"], (2,), [2 * X]),
    "custom_vjp": (lambda p, x: with_weight(x, p["w"]), (2,), [X]),
    "linear_call": (
        lambda p, x: linear_call(lambda w, a: a @ w, lambda w, g: g @ w.T, p["w"], x),
        (2,),
        [X],
    ),
    "vmap over the input": (
        lambda p, x: jax.vmap(lambda row: row @ p["w"])(x),
        (2,),
        [X],
    ),
    "cast": (lambda p, x: x @ p["w"].astype(jnp.float16).astype(jnp.float32), (2,), [X]),
    "transposed": (lambda p, x: x @ p["w"].T.reshape(5, 5).T, (2,), [X]),
    "scan": (
        lambda p, x: lax.scan(lambda c, _: (c, c @ p["w"]), x, None, length=3)[1],
        (3, 2),
        [X, X, X],
    ),
    "fori_loop": (
        lambda p, x: lax.fori_loop(0, 3, lambda i, c: c + 0 * (x @ p["w"]), x),
        (3, 2),
        [X, X, X],
    ),
    "while": (
        lambda p, x: lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + 0 * (x @ p["w"])), (0, x)
        ),
        (2,),
        [X, X, X],
    ),
    "cond": (lambda p, x: lax.cond(x.sum() > 99, lambda: x, lambda: x @ p["w"]), (2,), [X]),
    "carried": (
        lambda p, x: lax.scan(lambda c, _: ((c[0], c[1]), c[1] @ c[0]), (p["w"], x), None, 2)[1],
        (2, 2),
        [X, X],
    ),
}


@pytest.mark.parametrize("name", list(CONSTRUCTS))
def test_a_use_is_found_with_its_extent(name: str) -> None:
    function, extent, _ = CONSTRUCTS[name]
    (use,) = found(function, {"w": W}, X).of("w")
    assert use.extent == extent
    assert use.macs == np.prod(extent) * 25


@pytest.mark.parametrize("name", list(CONSTRUCTS))
def test_moments_are_those_of_the_inputs(name: str) -> None:
    function, _, inputs = CONSTRUCTS[name]
    output, sums = gathered(function, W, X)
    expected = sum(x.T @ x for x in inputs)
    np.testing.assert_allclose(sums[0], expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(output), jax.tree.leaves(function({"w": W}, X)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_scanned_stack_counts_every_slice_once() -> None:
    def function(p: Any, x: Any) -> Any:
        return lax.scan(lambda c, w: (c @ w, None), x, p["w"])[0]

    (use,) = found(function, {"w": STACK}, X).of("w")
    assert use.extent == (2,)
    assert use.macs == 4 * 2 * 25


def test_a_stack_under_vmap_counts_every_slice_once() -> None:
    def function(p: Any, x: Any) -> Any:
        return jax.vmap(lambda w: x @ w)(p["w"])

    (use,) = found(function, {"w": STACK}, X).of("w")
    assert use.extent == (2,)
    assert use.macs == 4 * 2 * 25


def test_moments_of_a_scanned_stack_are_kept_apart() -> None:
    def function(p: Any, x: Any) -> Any:
        return lax.scan(lambda c, w: (c @ w, None), x, p["w"])[0]

    _, sums = gathered(function, STACK, X)
    x = X
    for index, weight in enumerate(STACK):
        np.testing.assert_allclose(sums[index], x.T @ x, rtol=1e-4, atol=1e-5)
        x = x @ weight


def test_products_in_the_test_of_a_loop_are_summed() -> None:
    def function(p: Any, x: Any) -> Any:
        def test(state: Any) -> Any:
            return (state[0] < 3) & ((state[1] @ p["w"]).sum() < 1e9)

        return lax.while_loop(test, lambda state: (state[0] + 1, state[1] * 2), (0, x))

    output, sums = gathered(function, W, X)
    np.testing.assert_allclose(sums[0], X.T @ X * (1 + 4 + 16 + 64), rtol=1e-5)
    np.testing.assert_allclose(output[1], X * 8)


def test_a_reduction_is_no_call_of_its_computation() -> None:
    def function(p: Any, x: Any) -> Any:
        return x @ p["w"], lax.reduce(p["w"], np.float32(0), lambda a, b: a + 2 * b, (0,))

    (_, reduced), _ = gathered(function, W, X)
    np.testing.assert_allclose(reduced, function({"w": W}, X)[1], rtol=1e-6)


def test_moments_of_shared_weights_are_summed() -> None:
    _, sums = gathered(lambda p, x: (x @ p["w"]) @ p["w"], W, X)
    y = X @ W
    np.testing.assert_allclose(sums[0], X.T @ X + y.T @ y, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_moments_of_a_convolution_are_those_of_its_patches(
    groups: int, stride: int, dilation: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 11, 7, 6)).astype(np.float32)
    kernel = rng.standard_normal((3, 2, 6 // groups, 8)).astype(np.float32)

    def function(p: Any, x: Any) -> Any:
        return lax.conv_general_dilated(
            x,
            p["w"],
            (stride, 1),
            ((1, 0), (0, 2)),
            rhs_dilation=(1, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    form = ConvForm((3, 2), 6, 8, (stride, 1), ((1, 0), (0, 2)), (1, dilation), groups)
    output, sums = gathered(function, kernel, x, form)
    padded = np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)))
    height, width = output.shape[1:3]
    expected = np.zeros((groups, 6 * 6 // groups, 6 * 6 // groups))
    for group in range(groups):
        part = padded[..., group * 6 // groups : (group + 1) * 6 // groups]
        for i in range(height):
            for j in range(width):
                patch = part[:, i * stride : i * stride + 3, j : j + dilation + 1 : dilation]
                rows = patch.transpose(0, 3, 1, 2).reshape(2, -1)
                expected[group] += rows.T @ rows
    np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-4)


READS: dict[str, tuple[Callable[..., Any], str]] = {
    "product": (lambda p, x: x @ (p["w"] * 2), "mul"),
    "norm": (lambda p, x: x @ (p["w"] / jnp.linalg.norm(p["w"])), "mul"),
    "two weights": (lambda p, x: x @ (p["w"] @ p["w"]), "dot_general"),
    "reduced": (lambda p, x: lax.reduce(p["w"], 0.0, lambda a, b: a + 2 * b, (0,)), "reduce"),
    "sharded": (
        lambda p, x: jax.shard_map(
            jnp.matmul,
            mesh=AbstractMesh((2,), ("d",)),
            in_specs=(PartitionSpec("d"), PartitionSpec()),
            out_specs=PartitionSpec("d"),
        )(x, p["w"]),
        "shard_map",
    ),
    "carried away": (
        lambda p, x: lax.scan(lambda c, _: (c + 1.0, x @ c), p["w"], None, 2)[1],
        "scan",
    ),
}


@pytest.mark.parametrize("name", list(READS))
def test_anything_else_is_a_read(name: str) -> None:
    function, primitive = READS[name]
    assert primitive in {read.primitive for read in found(function, {"w": W}, X).reads}


def test_a_branch_that_costs_more_counts() -> None:
    def function(p: Any, x: Any) -> Any:
        return lax.cond(x.sum() > 0, lambda: x @ p["w"], lambda: x @ p["w"] @ p["w"])

    assert len(found(function, {"w": W}, X).of("w")) == 2


def test_a_look_up_has_the_extent_of_its_indices() -> None:
    (use,) = found(lambda p, i: jnp.take(p["w"], i, axis=0), {"w": W}, np.zeros((3, 2), int)).of(
        "w"
    )
    assert (use.primitive, use.extent, use.macs) == ("gather", (3, 2), 0)


def test_tracing_computes_nothing() -> None:
    shape = jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)
    (use,) = found(lambda p, x: x @ p["w"], {"w": shape}, shape).of("w")
    assert use.macs == 10**18


def test_an_unknown_version_of_jax_is_a_clear_error() -> None:
    closed, _ = jaxprs.traced(lambda p, x: x @ p["w"], {"w": W}, X)
    (eqn,) = (e for e in closed.jaxpr.eqns if e.primitive.name == "dot_general")
    bare = eqn.replace(params={})
    with pytest.raises(RankfoldError, match="cannot read its jaxprs; use an older jax"):
        product(bare, [None, Provenance("w")], 1)
