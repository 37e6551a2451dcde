from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec
from tests.jax.jaxpr.constructs import CONSTRUCTS, STACK, W, X

from rankfold_jax.jaxpr import dataflow as jaxprs
from rankfold_jax.jaxpr.dataflow import Dataflow, leaves_of


def found(function: Callable[..., Any], params: Any, *inputs: Any) -> Dataflow:
    closed, _ = jaxprs.traced(function, params, *inputs)
    return jaxprs.find(closed, [name for name, _ in leaves_of(params)])


@pytest.mark.parametrize("name", list(CONSTRUCTS))
def test_a_use_is_found_with_its_extent(name: str) -> None:
    function, extent, _ = CONSTRUCTS[name]
    (use,) = found(function, {"w": W}, X).of("w")
    assert use.extent == extent
    assert use.macs == np.prod(extent) * 25


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
