from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import JaxprEqn
from jax.sharding import AbstractMesh, PartitionSpec

from rankfold_jax.jaxpr.control_flow import (
    Call,
    Cond,
    Scan,
    ShardMap,
    While,
    evaluated,
    settled,
    split,
)

X = jnp.ones((2, 5))


def equation(name: str, function: Callable[..., Any], *arguments: Any) -> JaxprEqn:
    closed = jax.make_jaxpr(function)(*arguments)
    (eqn,) = (eqn for eqn in closed.jaxpr.eqns if eqn.primitive.name == name)
    return eqn


def test_a_scan_has_constants_a_carry_and_slices() -> None:
    def function(a: Any, b: Any, carry: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (c + a.sum() + b.sum(), x[:2]), carry, xs, reverse=True)

    eqn = equation("scan", function, jnp.ones(3), jnp.ones(4), 0.0, jnp.ones((7, 5)))
    scan = split(eqn)
    assert isinstance(scan, Scan)
    assert (scan.length, scan.reverse) == (7, True)
    shapes = [[v.aval.shape for v in part] for part in scan.operands(eqn.invars)]
    assert [len(part) for part in shapes] == [2, 1, 1]
    assert shapes[1:] == [[()], [(7, 5)]]
    carry, stacked = scan.outputs(eqn.outvars)
    assert [v.aval.shape for v in (*carry, *stacked)] == [(), (7, 2)]
    ((body, inputs),) = scan.iteration("abcd", "C")
    assert body is scan.body
    assert inputs == ["a", "b", "C", "d"]


def test_a_while_loop_has_constants_of_its_test_and_of_its_body() -> None:
    def function(a: Any, b: Any, carry: Any) -> Any:
        return lax.while_loop(lambda c: c.sum() < a[0], lambda c: c + b.sum() + b[0], carry)

    eqn = equation("while", function, jnp.ones(3), jnp.ones(4), X)
    loop = split(eqn)
    assert isinstance(loop, While)
    test, body, carry = loop.operands(eqn.invars)
    assert (len(test), len(body)) == (loop.test_constants, loop.body_constants)
    assert (
        [v.aval.shape for v in carry] == [v.aval.shape for v in loop.start(eqn.invars)] == [(2, 5)]
    )
    labels = [str(index) for index in range(len(eqn.invars))]
    inputs = dict(zip(("test", "body"), loop.iteration(labels, ["C"]), strict=True))
    assert inputs["test"] == (loop.test, [*labels[: len(test)], "C"])
    assert inputs["body"] == (loop.body, [*labels[len(test) : -1], "C"])


def test_a_cond_has_branches() -> None:
    eqn = equation("cond", lambda i, x: lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], x), 1, X)
    cond = split(eqn)
    assert isinstance(cond, Cond)
    primitives = [branch.jaxpr.eqns[0].primitive.name for branch in cond.branches]
    assert primitives == ["sin", "cos", "tan"]


CALLS: dict[str, Callable[..., Any]] = {
    "jit": jax.jit(jnp.sin),
    "remat2": jax.checkpoint(jnp.sin),
    "custom_jvp_call": jax.nn.relu,
    "composite": lax.composite(jnp.sin, name="test.sine"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_runs_one_jaxpr_on_its_operands(name: str) -> None:
    function = CALLS[name]
    closed = jax.make_jaxpr(function)(X)
    eqn = closed.jaxpr.eqns[0]
    while not isinstance(call := split(eqn), Call) or eqn.primitive.name != name:
        assert isinstance(call, Call)
        eqn = call.body.jaxpr.eqns[0]
    assert [v.aval.shape for v in call.body.jaxpr.invars] == [(2, 5)]


UNKNOWN: dict[str, Callable[[Any], Any]] = {
    "sin": jnp.sin,
    "reduce": lambda x: lax.reduce(x, 0.0, lambda a, b: a + 2 * b, (0,)),
    "reduce_window": lambda x: lax.reduce_window(
        x, 0.0, lambda a, b: a + 2 * b, (2, 2), (1, 1), "VALID"
    ),
    "scatter-add": lambda x: x.at[0].add(1.0),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_runs_a_jaxpr_on_single_numbers_is_no_call(name: str) -> None:
    assert split(equation(name, UNKNOWN[name], X)) is None


@pytest.mark.parametrize(
    ("spec", "shards"),
    [
        (PartitionSpec(), 1),
        (PartitionSpec("a"), 2),
        (PartitionSpec("a", "b"), 6),
        (PartitionSpec(("b", "a")), 6),
    ],
)
def test_a_shard_map_runs_once_for_each_shard(spec: PartitionSpec, shards: int) -> None:
    mesh = AbstractMesh((2, 3), ("a", "b"))
    function = jax.shard_map(jnp.sin, mesh=mesh, in_specs=spec, out_specs=spec)
    sharded = split(equation("shard_map", function, jnp.ones((6, 9))))
    assert isinstance(sharded, ShardMap)
    assert sharded.shards == shards


def depth(eqn: JaxprEqn, inside: list[int]) -> list[int]:
    return [max(inside, default=0) + 1] * len(eqn.outvars)


def test_an_abstract_run_takes_constants_for_what_they_are() -> None:
    closed = jax.make_jaxpr(lambda x: (jnp.sin(x + jnp.arange(5.0)), 3.0))(X)
    assert evaluated(closed, [10], depth, lambda _: 0) == [12, 0]


@pytest.mark.parametrize(
    ("turns", "wanted"), [(0, {"start", "turn"}), (3, {"turn"}), (None, {"start", "turn"})]
)
def test_a_loop_gives_its_initial_carry_only_if_it_may_not_run(
    turns: int | None, wanted: set[str]
) -> None:
    def function(x: Any) -> Any:
        if turns is None:
            return lax.while_loop(lambda c: c.sum() < 9, jnp.sin, x)
        return lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=turns)[0]

    loop = split(equation("scan" if turns is not None else "while", function, X))
    assert isinstance(loop, Scan | While)

    def run(body: Any, inputs: list[frozenset[str]], record: list[Any]) -> list[frozenset[str]]:
        record.append(body)
        return [frozenset(["turn"])]

    def either(several: Any) -> frozenset[str]:
        return frozenset[str]().union(*several)

    carry, outputs, record = settled(loop, [frozenset(["start"])], run, either, list[Any])
    assert carry == [{"start", "turn"}]
    assert outputs == [wanted]
    assert record == [body for body, _ in loop.iteration([None], [None])]
