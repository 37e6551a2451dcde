"""The method of a layer: the one of least error at equal cost.

For policies that rank one matrix at a time. Ranks of different methods do not compare, costs do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rankfold.decompose.base import RankTuple, Unfolding
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.blas_threads import threads_for
from rankfold.layers.candidates import Candidate
from rankfold.layers.layer import Layer
from rankfold.ops import Conv, Cost
from rankfold.policies.base import Choice

_TIE = 1e-6
"""Relative difference of two errors that counts as rounding: the earlier method is kept."""
_BISECTIONS = 24
"""Halvings of the factor on the ranks: 2⁻²⁴ of the range moves no rank by one."""


def best_method(
    layer: Layer, rank_of: Callable[[Unfolding], int], *, zero_rank_reason: str
) -> Choice:
    """The method of least error at equal cost, for a policy that ranks one matrix at a time.

    The first allowed method whose ranks make the layer cheaper sets the cost. Every other method
    gets the largest ranks within that cost, in parameters and in MACs, and the least error wins.

    Args:
        layer: the layer.
        rank_of: the rank the policy gives a mode; 0 for no structure.
        zero_rank_reason: the reason to give where a rank is 0.
    """
    reasons = dict(layer.refusals)
    wanted: dict[str, RankTuple] = {}
    limit: Cost | None = None
    contenders: dict[str, RankTuple] = {}
    op = layer.op  # read out here: a file that cannot be read is no fault of a method
    for name, method in layer.contenders.items():
        try:
            with threads_for(layer.smaller_side):  # the policy may read values
                unfolding_ranks = tuple(rank_of(mode) for mode in method.modes(op, layer.spectrum))
            if min(unfolding_ranks) < 1:
                reasons[name] = zero_rank_reason
                continue
            wanted[name] = method.ranks(unfolding_ranks)
            cost = layer.cost_as_ranked(name, wanted[name])
        except (Refused, RankfoldError) as fault:  # ranks of a policy, never the user's
            reasons[name] = str(fault)
            continue
        grew = layer.why_not_smaller(cost)
        if grew is not None:
            reasons[name] = grew
        elif limit is None:
            limit, contenders = cost, {name: wanted[name]}
    if limit is None:
        return Choice(None, reason=_summary(layer, reasons))
    for name, method in layer.contenders.items():
        if name in contenders:
            continue
        try:
            base = wanted.get(name, method.max_ranks(op))
            within = _largest_within(layer, name, limit, base)
        except (Refused, RankfoldError) as fault:
            reasons[name] = str(fault)
            continue
        if within is not None:
            contenders[name] = within
    if len(contenders) == 1:
        return Choice(*contenders.popitem())
    return _least(layer, contenders, reasons)


def _largest_within(layer: Layer, method: str, limit: Cost, base: RankTuple) -> RankTuple | None:
    """Return the largest ranks in proportion to `base` with a cost within a limit, or None."""
    most = layer.methods[method].max_ranks(layer.costs.outline)

    def scaled(factor: float) -> RankTuple:
        return tuple(min(m, max(1, round(factor * b))) for b, m in zip(base, most, strict=True))

    # Ranks of 1 are the cheapest there are. From there costs rise with the factor, up to where
    # every rank is at its largest, so that bisection finds the last factor within the limit.
    if not layer.template_cost(method, scaled(0.0)).within(limit):
        return None
    low, high = 0.0, max(m / b for m, b in zip(most, base, strict=True))
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if layer.template_cost(method, scaled(middle)).within(limit):
            low = middle
        else:
            high = middle
    return scaled(low)


def _least(layer: Layer, contenders: Mapping[str, RankTuple], reasons: Mapping[str, str]) -> Choice:
    """The contender of least error; the first one where the difference is rounding."""
    best: Candidate | None = None
    failures: dict[str, str] = {}
    for name, ranks in contenders.items():
        try:
            candidate = layer.candidate(name, ranks)
        except Refused as refused:
            failures[name] = refused.reason
            continue
        if best is None or candidate.loss < best.loss * (1.0 - 2.0 * _TIE):
            best = candidate
    if best is None:
        return Choice(None, reason=_summary(layer, {**reasons, **failures}))
    return Choice(best.method, best.ranks)


def _summary(layer: Layer, reasons: Mapping[str, str]) -> str:
    op = layer.op
    tried = {name: reason for name, reason in reasons.items() if name in layer.methods}
    if isinstance(op, Conv) and op.groups > 1 and op.weight.shape[1] == 1:
        tried = {name: reason for name, reason in tried.items() if name == "spatial_svd"}
        detail = f" (spatial_svd {tried['spatial_svd']})" if tried else ""
        return f"depthwise{detail}"
    chosen = tried or dict(reasons)
    if len(set(chosen.values())) == 1:
        return next(iter(chosen.values()))
    return "; ".join(
        reason if reason.startswith(name) else f"{name}: {reason}"
        for name, reason in chosen.items()
    )
