"""Multiply-accumulates by the arrays they are made with, whatever was done to these before.

For layers that cannot be read as ops: their kernels may be scaled, concatenated or made from
several arrays. A value is the model's own where it is computed from the model's arrays alone, and a
product of such a value with data counts for the arrays that it is computed from, in equal shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from jax.extend.core import ClosedJaxpr, JaxprEqn

from rankfold_jax.jaxpr.control_flow import (
    Call,
    Cond,
    Scan,
    ShardMap,
    While,
    control_flow,
    evaluated,
    settled,
)
from rankfold_jax.jaxpr.parameter_uses import product
from rankfold_jax.jaxpr.provenance import Provenance

Sources: TypeAlias = "frozenset[str] | None"
"""The labels of the arrays that a value is computed from; None for data."""
_NONE: Sources = frozenset()


def counted(closed: ClosedJaxpr, leaves: Sequence[str | None]) -> Counter[str]:
    """Count the multiply-accumulates of products of data with the model's arrays, by label.

    A loop of unknown length counts once, with its test; of several branches the most costly one;
    what is cut up between devices as often as it is run.

    Args:
        closed: of a function whose first inputs are the model's arrays.
        leaves: a label for each of these; None for one that nothing is counted for.
    """
    inputs: list[Sources] = [_NONE if leaf is None else frozenset((leaf,)) for leaf in leaves]
    inputs += [None] * (len(closed.jaxpr.invars) - len(inputs))
    counts: Counter[str] = Counter()
    _walk(closed, inputs, 1, counts)
    return counts


def _walk(
    closed: ClosedJaxpr, inputs: Sequence[Sources], repeats: int, counts: Counter[str]
) -> list[Sources]:
    def step(eqn: JaxprEqn, inside: list[Sources]) -> list[Sources]:
        return _step(eqn, inside, repeats, counts)

    return evaluated(closed, inputs, step, lambda _: _NONE)


def _step(
    eqn: JaxprEqn, inside: list[Sources], repeats: int, counts: Counter[str]
) -> list[Sources]:
    match control_flow(eqn):
        case Scan() | While() as loop:

            def run(body: ClosedJaxpr, inputs: list[Sources], into: Counter[str]) -> list[Sources]:
                return _walk(body, inputs, repeats * loop.length, into)

            _, outputs, inner = settled(loop, inside, run, _joined, Counter[str])
            counts.update(inner)
            return outputs
        case Cond(branches):
            of_branches = [Counter[str]() for _ in branches]
            columns = zip(
                *(
                    _walk(branch, inside[1:], repeats, into)
                    for branch, into in zip(branches, of_branches, strict=True)
                ),
                strict=True,
            )
            outputs = [_joined((inside[0], *column)) for column in columns]
            counts.update(max(of_branches, key=lambda into: sum(into.values())))
            return outputs
        case Call(body):
            return _walk(body, inside, repeats, counts)
        case ShardMap(body, shards):
            return _walk(body, inside, repeats * shards, counts)
    whole = _joined(inside)
    if whole is None:
        labels = [Provenance("", axes=()) if sources else None for sources in inside]
        use = product(eqn, labels, repeats)
        if use is not None:
            (sources,) = (sources for sources in inside if sources)
            for index, leaf in enumerate(sorted(sources)):
                share, rest = divmod(use.macs, len(sources))
                counts[leaf] += share + (index < rest)
    return [whole] * len(eqn.outvars)


def _joined(several: Sequence[Sources]) -> Sources:
    whole: frozenset[str] = frozenset()
    for sources in several:
        if sources is None:
            return None
        whole |= sources
    return whole
