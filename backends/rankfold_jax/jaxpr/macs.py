"""Multiply-accumulates by the arrays they are made with, whatever was done to these before.

For layers that cannot be read as ops: their kernels may be scaled, concatenated or made from
several arrays. A value is the model's own where it is computed from the model's arrays alone, and a
product of such a value with data counts for the arrays that it is computed from, in equal shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from rankfold_jax.jaxpr.dataflow import called
from rankfold_jax.jaxpr.parameter_uses import product
from rankfold_jax.jaxpr.provenance import Provenance, param

Sources: TypeAlias = "frozenset[str] | None"
"""The labels of the arrays that a value is computed from; None for data."""
_NONE: Sources = frozenset()


def counted(closed: ClosedJaxpr, leaves: Sequence[str | None]) -> Counter[str]:
    """The multiply-accumulates of products of data with the model's arrays, by label.

    A loop of unknown length counts once; of several branches the most costly one.

    Args:
        closed: of a function whose first inputs are the model's arrays.
        leaves: a label for each of these; None for one that nothing is counted for.
    """
    inputs: list[Sources] = [_NONE if leaf is None else frozenset((leaf,)) for leaf in leaves]
    inputs += [None] * (len(closed.jaxpr.invars) - len(inputs))
    counts: Counter[str] = Counter()
    _walk(closed.jaxpr, inputs, 1, counts)
    return counts


def _walk(
    jaxpr: Jaxpr, inputs: Sequence[Sources], repeats: int, counts: Counter[str]
) -> list[Sources]:
    known: dict[Var, Sources] = dict.fromkeys(jaxpr.constvars, _NONE)
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def of(v: Var | Literal) -> Sources:
        return _NONE if isinstance(v, Literal) else known[v]

    for eqn in jaxpr.eqns:
        outputs = _step(eqn, [of(v) for v in eqn.invars], repeats, counts)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _step(
    eqn: JaxprEqn, inside: list[Sources], repeats: int, counts: Counter[str]
) -> list[Sources]:
    name = eqn.primitive.name
    if name == "scan":
        consts, carried = param(eqn, "num_consts"), param(eqn, "num_carry")
        length, body = param(eqn, "length"), param(eqn, "jaxpr").jaxpr
        ends = consts + carried
        return _loop(
            body, inside[:consts], inside[consts:ends], inside[ends:], repeats * length, counts
        )
    if name == "while":
        tests, consts = param(eqn, "cond_nconsts"), param(eqn, "body_nconsts")
        ends = tests + consts
        body = param(eqn, "body_jaxpr").jaxpr
        return _loop(body, inside[tests:ends], inside[ends:], [], repeats, counts)
    if name == "cond":
        return _branches(eqn, inside, repeats, counts)
    inner = called(eqn)
    if inner is not None:
        return _walk(inner.jaxpr, inside, repeats, counts)
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


def _loop(
    body: Jaxpr,
    consts: Sequence[Sources],
    state: Sequence[Sources],
    sliced: Sequence[Sources],
    repeats: int,
    counts: Counter[str],
) -> list[Sources]:
    carried = list(state)
    while True:
        tried: Counter[str] = Counter()
        outputs = _walk(body, [*consts, *carried, *sliced], repeats, tried)
        joined = [_joined(pair) for pair in zip(carried, outputs, strict=False)]
        if joined == carried:
            counts.update(tried)
            return outputs
        carried = joined


def _branches(
    eqn: JaxprEqn, inside: Sequence[Sources], repeats: int, counts: Counter[str]
) -> list[Sources]:
    branch_counts: list[Counter[str]] = []
    outputs: list[list[Sources]] = []
    for branch in param(eqn, "branches"):
        branch_counts.append(Counter())
        outputs.append(_walk(branch.jaxpr, inside[1:], repeats, branch_counts[-1]))
    counts.update(max(branch_counts, key=lambda counter: sum(counter.values())))
    return [_joined((inside[0], *column)) for column in zip(*outputs, strict=True)]


def _joined(several: Sequence[Sources]) -> Sources:
    whole: frozenset[str] = frozenset()
    for sources in several:
        if sources is None:
            return None
        whole |= sources
    return whole
