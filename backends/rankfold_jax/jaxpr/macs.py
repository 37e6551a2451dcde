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

from rankfold_jax.jaxpr import control_flow as flow
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

    return flow.evaluated(closed, inputs, step, lambda _: _NONE)


def _step(
    eqn: JaxprEqn, inside: list[Sources], repeats: int, counts: Counter[str]
) -> list[Sources]:
    match flow.split(eqn):
        case flow.Scan() | flow.While() as loop:

            def run(body: ClosedJaxpr, inputs: list[Sources], into: Counter[str]) -> list[Sources]:
                return _walk(body, inputs, repeats * loop.length, into)

            _, outputs, inner = flow.settled(loop, inside, run, _joined, Counter[str])
            counts.update(inner)
            return outputs
        case flow.Cond(branches):
            tallies = [Counter[str]() for _ in branches]
            of_branches = [
                _walk(branch, inside[1:], repeats, tally)
                for branch, tally in zip(branches, tallies, strict=True)
            ]
            counts.update(max(tallies, key=lambda tally: sum(tally.values())))
            # A value that data choose is data, whatever the branches make it of.
            return [_joined((inside[0], *column)) for column in zip(*of_branches, strict=True)]
        case flow.Call(body):
            return _walk(body, inside, repeats, counts)
        case flow.ShardMap(body, shards):
            # Shapes within it are those of one shard.
            return _walk(body, inside, repeats * shards, counts)
    whole = _joined(inside)
    if whole is None:
        # One label will do for them all: only the sizes of the product are asked for.
        labels = [Provenance("", axes=()) if sources else None for sources in inside]
        use = product(eqn, labels, repeats)
        if use is not None:
            (sources,) = (sources for sources in inside if sources)
            # Whole numbers that add up to all of them.
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
