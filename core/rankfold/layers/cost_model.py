"""Costs of a layer and of chains in its place, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from rankfold.decompose.base import RankTuple
from rankfold.decompose.guarded import Guarded
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.settings import Usage
from rankfold.ops import (
    Chain,
    Conv,
    ConvTranspose,
    Cost,
    Embedding,
    Extent,
    Op,
    as_chain,
    blank,
    geometry,
    macs,
    params,
    with_weight,
)
from rankfold.ops.geometry import is_int

_NOMINAL_OUTPUT = 32
"""Positions along each axis of the output of a convolution whose input is not known: so many that
edges count for little. The costs of its chains are compared at it, and shown nowhere; `Energy`
plans the same for ResNet-18 and MobileNetV3 with any number from 1 to 256."""


class Costs:
    """The costs of a layer and of what may replace it.

    Args:
        op: the layer; its values are not kept.
        usage: what the model does with it.

    Attributes:
        outline: the layer without its values, for what depends on its shape alone.
        counted: whether the MACs of its calls are known, where there were example inputs.
    """

    def __init__(self, op: Op, usage: Usage) -> None:
        self.outline = _outline(op)
        self.counted = usage.counted
        self._extents = usage.extents
        self._attended = usage.attended
        self._params_beside = usage.params_beside
        self._formulas: dict[str, _Polynomial] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, with shapes in place of blank arrays.

        pickle would write out the zeros that these stand for, as many as the weight has.
        """
        fields = vars(self.outline)
        arrays = [name for name in ("weight", "bias") if fields.get(name) is not None]
        shapes = {name: fields[name].shape for name in arrays}
        others = {name: value for name, value in fields.items() if name not in shapes}
        return {**vars(self), "outline": (type(self.outline), shapes, others)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the blank arrays anew."""
        kind, shapes, others = state["outline"]
        arrays = {name: blank(*shape) for name, shape in shapes.items()}
        vars(self).update({**state, "outline": kind(**arrays, **others)})

    @cached_property
    def before(self) -> Cost:
        """Cost of the layer itself."""
        return self.of(self.outline)

    def of(self, ops: Op | Chain) -> Cost:
        """Cost of the layer or of a chain in its place.

        Without example inputs the MACs are those of a nominal input, one that gives 32 outputs
        along every axis: good for comparing chains of one layer, not layers.
        """
        cost = self._with_products(self._stages(ops))
        # The op stands for the layer with all that it holds; a chain is all there is in its place.
        beside = 0 if isinstance(ops, tuple) else self._params_beside
        return Cost(cost.params + beside, cost.macs)

    def at_ranks(self, method: Guarded, ranks: RankTuple) -> Cost:
        """Cost of the chain of a method at given ranks, by formula where the method has one.

        Raises:
            RankfoldError: a rank is out of range.
            Refused: the method failed, or its chain does not fit the layer.
        """
        if not method.multilinear_costs:
            return self._with_products(self._template(method, ranks))
        formula = self._formulas.get(method.name)
        if formula is None:
            most = method.max_ranks(self.outline)
            # An interpolative stage saves the square of its rank.
            degree = 2 if method.interpolates else 1
            formula = self._formulas[method.name] = _Polynomial.through(
                most, degree, lambda corner: self._template(method, corner)
            )
        if not formula.covers(ranks):  # which the template says in its own words
            return self._with_products(self._template(method, ranks))
        return self._with_products(formula.at(ranks))

    def _template(self, method: Guarded, ranks: RankTuple) -> Cost:
        template = method.template(self.outline, ranks)
        try:
            return self._stages(template)
        except RankfoldError as error:
            raise Refused(
                f"{method.name} gave a chain that does not fit the layer: {error}"
            ) from None

    def _stages(self, ops: Op | Chain) -> Cost:
        """Count what the stages themselves take."""
        extents = self._extents
        if extents is None:
            extents = (_nominal_extent(self.outline),)
        chain = as_chain(ops)
        return Cost(params(chain), sum(macs(chain, extent) for extent in extents))

    def _with_products(self, cost: Cost) -> Cost:
        # The product of an activation with the whole table (an output layer tied to an embedding)
        # costs one multiply-accumulate a parameter and position, of a table or of factors of it
        # alike.
        if not self._attended:
            return cost
        # with the table, or with one factor of it after the other
        products = self._attended * cost.params // params(self.outline)
        return Cost(cost.params, cost.macs + products)

    def why_not_smaller(self, cost: Cost) -> str | None:
        """Return why a chain of that cost is no gain; None where it is one.

        A chain must have fewer parameters and no more MACs than the layer. A table look-up has no
        MACs, so an `Embedding` is judged by its parameters.
        """
        if cost.params >= self.before.params:
            return f"grew: parameters {self.before.params} → {cost.params}"
        # The layer's MACs may be 0: those of a table, and those of a layer that the inputs do not
        # reach. A chain in its place is then judged by its parameters.
        if self.before.macs and cost.macs > self.before.macs:
            nominal = self._extents is None
            where = " for a nominal input; give inputs= for the real ones" if nominal else ""
            return f"grew: MACs {self.before.macs} → {cost.macs}{where}"
        return None

    def remark(self, cost: Cost) -> str:
        """Return why a chain that is a gain has no MACs, or has some that the layer has not."""
        traced = self._extents is not None
        if traced and not self._extents:
            return "no call of it is counted on the example inputs"
        if self.before.macs == 0 and cost.macs:
            added = f"adds {cost.macs} MACs" if traced else "adds MACs"
            return f"{added}: a table look-up has none"
        return ""


@dataclass(frozen=True)
class _Polynomial:
    """Counts that are polynomials in some ranks.

    Attributes:
        most: the largest ranks; the least are 1.
        terms: by the degree in each rank, what Π C(rank − 1, degree) is multiplied by.
    """

    most: RankTuple
    terms: Mapping[tuple[int, ...], Cost]

    @staticmethod
    def through(most: RankTuple, degree: int, count: Callable[[RankTuple], Cost]) -> _Polynomial:
        """Fit to what is counted at the least ranks.

        Args:
            most: the largest ranks.
            degree: of the polynomial in each rank.
            count: gives the cost at some ranks.
        """
        degrees = list(product(*(range(min(degree, limit - 1) + 1) for limit in most)))
        corners = {corner: count(tuple(1 + step for step in corner)) for corner in degrees}
        terms = {}
        for corner in degrees:
            # Newton's forward differences: f(1 + e) = Σ_{s ≤ e} c_s Π C(e_i, s_i) is inverted by
            # c_e = Σ_{s ≤ e} (−1)^{|e| − |s|} Π C(e_i, s_i) f(1 + s).
            signed = [
                ((-1) ** (sum(corner) - sum(part)) * _binomials(corner, part), corners[part])
                for part in product(*(range(step + 1) for step in corner))
            ]
            terms[corner] = Cost(
                sum(factor * cost.params for factor, cost in signed),
                sum(factor * cost.macs for factor, cost in signed),
            )
        return _Polynomial(most, terms)

    def covers(self, ranks: RankTuple) -> bool:
        """Return whether these are ranks that there are."""
        return len(ranks) == len(self.most) and all(
            is_int(rank) and 1 <= rank <= limit
            for rank, limit in zip(ranks, self.most, strict=True)
        )

    def at(self, ranks: RankTuple) -> Cost:
        """Return the counts at given ranks."""
        steps = tuple(int(rank) - 1 for rank in ranks)
        weights = {term: _binomials(steps, term) for term in self.terms}
        return Cost(
            sum(weights[term] * cost.params for term, cost in self.terms.items()),
            sum(weights[term] * cost.macs for term, cost in self.terms.items()),
        )


def _binomials(counts: Sequence[int], chosen: Sequence[int]) -> int:
    """Return Π C(n, k)."""
    return math.prod(map(math.comb, counts, chosen))


def _outline(op: Op) -> Op:
    outline = with_weight(op, blank(*op.weight.shape))
    if isinstance(outline, Embedding) or op.bias is None:
        return outline
    return replace(outline, bias=blank(*op.bias.shape))


def _nominal_extent(op: Op) -> Extent:
    # A matrix costs the same at each position, so one position is as good as any number.
    if not isinstance(op, (Conv, ConvTranspose)):
        return (1,)
    geo = geometry(op)
    if isinstance(op, ConvTranspose):
        # The padding of a transposed convolution is cut off its output, so the input is larger by
        # it.
        return (1, *(_NOMINAL_OUTPUT + 2 * max(p) for p in geo.pads((1,) * geo.axes)))
    return (
        1,
        # The least extent at which 32 windows of that reach fit, without padding.
        *((_NOMINAL_OUTPUT - 1) * s + r for s, r in zip(geo.stride, geo.reach, strict=True)),
    )
