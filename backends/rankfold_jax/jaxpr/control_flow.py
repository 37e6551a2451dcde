"""Equations that run other jaxprs, taken apart into named parts, and abstract runs of jaxprs.

What a value is stands open: a label, a set of layers, numbers. So each walk through jaxprs keeps
its own notion of values, and says itself what two branches or two turns of a loop come to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeAlias, TypeVar

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from rankfold_jax.jaxpr.provenance import param, shape_of

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Scan:
    """A loop of known length.

    Attributes:
        body: of (constants, carry, slices), gives (carry, rows of what is stacked).
        constants: number of operands that every turn is given whole.
        carried: number of operands, and of outputs, that a turn hands to the next.
        length: number of turns.
        reverse: whether the turns go from the last slice to the first.
    """

    body: ClosedJaxpr
    constants: int
    carried: int
    length: int
    reverse: bool

    def operands(self, values: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
        """Split values of the operands into constants, initial carry and what is cut in slices."""
        return _three(values, self.constants, self.carried)

    def outputs(self, values: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
        """Split values of the outputs into the carry and what is stacked."""
        return values[: self.carried], values[self.carried :]

    def start(self, values: Sequence[T]) -> Sequence[T]:
        """Return the initial carry among values of the operands."""
        return self.operands(values)[1]

    def iteration(
        self, values: Sequence[T], carry: Sequence[T]
    ) -> Iterator[tuple[ClosedJaxpr, list[T]]]:
        """Yield each jaxpr of a turn with its inputs, for operands of which slices are taken."""
        constants, _, slices = self.operands(values)
        yield self.body, [*constants, *carry, *slices]


@dataclass(frozen=True, eq=False)
class While:
    """A loop of unknown length.

    Attributes:
        test: of (its constants, carry), gives whether another turn follows.
        body: of (its constants, carry), gives the carry.
        test_constants: number of operands that are constants of the test.
        body_constants: number of operands that are constants of the body.
    """

    test: ClosedJaxpr
    body: ClosedJaxpr
    test_constants: int
    body_constants: int
    length: ClassVar[int] = 1
    """Number of turns that are counted."""

    def operands(self, values: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
        """Split values of the operands into constants of test and body, and the initial carry."""
        return _three(values, self.test_constants, self.body_constants)

    def start(self, values: Sequence[T]) -> Sequence[T]:
        """Return the initial carry among values of the operands."""
        return self.operands(values)[2]

    def iteration(
        self, values: Sequence[T], carry: Sequence[T]
    ) -> Iterator[tuple[ClosedJaxpr, list[T]]]:
        """Yield each jaxpr of a turn with its inputs, the body last."""
        test, body, _ = self.operands(values)
        yield self.test, [*test, *carry]
        yield self.body, [*body, *carry]


@dataclass(frozen=True, eq=False)
class Cond:
    """A choice of one of several branches.

    Attributes:
        branches: each of the operands after the first, which is the number of the one to take.
    """

    branches: Sequence[ClosedJaxpr]


@dataclass(frozen=True, eq=False)
class Call:
    """A call that does nothing but run a jaxpr: jit, remat, custom_jvp, custom_vjp and so on.

    Attributes:
        body: of the operands, gives the outputs.
    """

    body: ClosedJaxpr


@dataclass(frozen=True, eq=False)
class ShardMap:
    """A call whose operands are cut up between devices, and its outputs put together.

    Attributes:
        body: of a shard of each operand, gives a shard of each output.
        shards: number of runs of the body.
    """

    body: ClosedJaxpr
    shards: int


ControlFlow: TypeAlias = Scan | While | Cond | Call | ShardMap


def split(eqn: JaxprEqn) -> ControlFlow | None:
    """Take an equation apart; None where it runs no jaxpr, or runs it in a way that is not known.

    Raises:
        RankfoldError: this version of JAX writes its jaxprs in another way.
    """
    of = partial(param, eqn)
    match eqn.primitive.name:
        case "scan":
            carried, length = of("num_carry"), of("length")
            return Scan(of("jaxpr"), of("num_consts"), carried, length, of("reverse"))
        case "while":
            test, body = of("cond_jaxpr"), of("body_jaxpr")
            return While(test, body, of("cond_nconsts"), of("body_nconsts"))
        case "cond":
            return Cond(of("branches"))
        case "shard_map":
            # Along an axis of the mesh that is in no spec all devices do the same.
            mesh, specs = of("mesh"), (*of("in_specs"), *of("out_specs"))
            entries = [entry for spec in specs for entry in spec if entry is not None]
            axes = {a for e in entries for a in (e if isinstance(e, tuple) else (e,))}
            shards = math.prod(mesh.shape[axis] for axis in axes)
            return ShardMap(_closed(of("jaxpr")), shards)
    return _call(eqn)


def _call(eqn: JaxprEqn) -> Call | None:
    # Primitives name their jaxprs each in its own way. Where there are several, none is called.
    inner = [value for value in eqn.params.values() if isinstance(value, Jaxpr | ClosedJaxpr)]
    if len(inner) != 1:
        return None
    body = _closed(inner[0])
    # A reduction, too, has a jaxpr with as many inputs and outputs, but of single numbers.
    ends = ((eqn.invars, body.jaxpr.invars), (eqn.outvars, body.jaxpr.outvars))
    alike = all([shape_of(v) for v in a] == [shape_of(v) for v in b] for a, b in ends)
    return Call(body) if alike else None


def _three(
    values: Sequence[T], first: int, second: int
) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
    return values[:first], values[first : first + second], values[first + second :]


def _closed(jaxpr: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    return ClosedJaxpr(jaxpr, ()) if isinstance(jaxpr, Jaxpr) else jaxpr


def evaluated(
    closed: ClosedJaxpr,
    inputs: Sequence[T],
    step: Callable[[JaxprEqn, list[T]], Sequence[T]],
    constant: Callable[[Any], T],
) -> list[T]:
    """Go through the equations of a jaxpr and return the values of its outputs.

    Args:
        closed: the jaxpr.
        inputs: a value for each of its inputs.
        step: gives the values of an equation's outputs, from those of its operands.
        constant: gives the value of a number or array that is part of the jaxpr.
    """
    known: dict[Var, T] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
    arrays = zip(closed.jaxpr.constvars, closed.consts, strict=True)
    known.update((var, constant(array)) for var, array in arrays)

    def of(variables: Sequence[Var | Literal]) -> list[T]:
        return [constant(v.val) if isinstance(v, Literal) else known[v] for v in variables]

    for eqn in closed.jaxpr.eqns:
        known.update(zip(eqn.outvars, step(eqn, of(eqn.invars)), strict=True))
    return of(closed.jaxpr.outvars)


def settled(
    loop: Scan | While,
    operands: Sequence[T],
    run: Callable[[ClosedJaxpr, list[T], R], list[T]],
    either: Callable[[Sequence[T]], T],
    record: Callable[[], R],
) -> tuple[list[T], list[T], R]:
    """Run a loop abstractly until its carry is all that it can be in any turn.

    Args:
        loop: the loop.
        operands: a value for each of its operands; slices of those that are cut.
        run: gives the values of a jaxpr's outputs and adds to a record what is done in it.
        either: gives the value of what is one of several; it must lose something where it changes
            a value, so that the turns come to an end.
        record: gives an empty record.

    Returns:
        The carry at the start of any turn, the outputs of the loop, and what one turn recorded.
    """
    carry = list(loop.start(operands))
    while True:
        # A round before the last knows too much: what it is given holds in the first turns alone.
        recorded, outputs = record(), list[T]()
        for body, inputs in loop.iteration(operands, carry):
            outputs = run(body, inputs, recorded)
        after = outputs[: len(carry)]
        joined = [either(pair) for pair in zip(carry, after, strict=True)]
        if joined == carry:
            break
        carry = joined
    # The carry of a settled loop covers its initial one and what any number of turns make of it.
    may_not_run = isinstance(loop, While) or loop.length == 0
    final = carry if may_not_run else after
    return carry, [*final, *outputs[len(carry) :]], recorded
