"""What one layer offers a policy: candidates of every allowed method, with cost and error.

A `Layer` reads its op, computes its spectrum and decomposes only on demand, remembers what it has
computed, and forgets it on `release`, so that planning a model holds one layer at a time.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankfold.contracts import Decomposition, Placement, Ranks
from rankfold.errors import RankfoldError, Refused
from rankfold.guarded import Guarded
from rankfold.ops import Chain, Conv, ConvTranspose, Extent, Op, as_chain, geometry, macs, params
from rankfold.spectrum import Spectrum

_NOMINAL_OUTPUT = 32
_BISECTIONS = 24


@dataclass(frozen=True, order=False)
class Cost:
    """Parameters, and multiply-accumulates in one forward pass on the example inputs."""

    params: int
    macs: int

    def within(self, other: Cost) -> bool:
        """Whether neither is above the other's."""
        return self.params <= other.params and self.macs <= other.macs


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to decompose a layer: its chain, what it costs and the error of the weight."""

    method: str
    ranks: Ranks
    chain: Chain
    cost: Cost
    error: float


class Layer:
    """One layer of a model, as a policy sees it.

    Args:
        paths: the layer's path in the model, then its further paths where it is shared.
        read: gives the op; called again after `release`.
        methods: the allowed decompositions by name, in order of preference.
        extents: the extent of the layer's input at each call in one forward pass; None where no
            example inputs were given.
        placement: how the scale is spread over a chain.
        seed: of the run; every layer derives a generator of its own from it.

    Attributes:
        path: the layer's path in the model.
        paths: that path and its further ones.
        methods: those of the allowed decompositions that apply, by name.
        refusals: for those that do not apply, why.
    """

    def __init__(
        self,
        paths: tuple[str, ...],
        read: Callable[[], Op],
        methods: Mapping[str, Decomposition],
        extents: Sequence[Extent] | None,
        placement: Placement,
        seed: int,
    ) -> None:
        self.path = paths[0]
        self.paths = paths
        self._read = read
        self._placement: Placement = placement
        self._seed = seed
        self._op: Op | None = None
        self._spectrum: Spectrum | None = None
        self._candidates: dict[tuple[str, Ranks], Candidate] = {}
        self.traced = extents is not None
        self._extents = extents
        self.methods: dict[str, Decomposition] = {}
        self.refusals: dict[str, str] = {}
        op = self.op
        for name, method in methods.items():
            guarded = Guarded(method)
            try:
                reason = guarded.refuse(op)
            except Refused as refused:
                reason = refused.reason
            if reason is None:
                self.methods[name] = guarded
            else:
                self.refusals[name] = str(reason)

    @property
    def op(self) -> Op:
        """The layer as an op."""
        if self._op is None:
            self._op = self._read()
        return self._op

    @property
    def spectrum(self) -> Spectrum:
        """The eigenpairs of the layer's mode Grams."""
        if self._spectrum is None:
            self._spectrum = Spectrum(self.op)
        return self._spectrum

    def only(self, method: str) -> Layer:
        """The same layer with one allowed method, sharing what has been computed so far."""
        view = copy.copy(self)
        view.methods = {name: self.methods[name] for name in self.methods if name == method}
        return view

    def release(self) -> None:
        """Forgets the op, the spectrum and all candidates."""
        self._op = self._spectrum = None
        self._candidates.clear()

    def cost(self, ops: Op | Chain) -> Cost:
        """What the layer or a chain in its place costs.

        Without example inputs the MACs are those of a nominal input, one that gives 32 outputs
        along every axis: good for comparing chains of one layer, not layers.
        """
        extents = self._extents
        if extents is None:
            extents = (_nominal_extent(self.op),)
        chain = as_chain(ops)
        return Cost(params(chain), sum(macs(chain, extent) for extent in extents))

    def grew(self, cost: Cost) -> str | None:
        """Why a chain of that cost is no gain; None where it is one.

        A chain must have fewer parameters and no more MACs than the layer. A table look-up has no
        MACs, so an `Embedding` is judged by its parameters.
        """
        before = self.cost(self.op)
        if cost.params >= before.params:
            return f"grew: parameters {before.params} → {cost.params}"
        if before.macs and cost.macs > before.macs:
            where = "" if self.traced else " for a nominal input; give inputs= for the real ones"
            return f"grew: MACs {before.macs} → {cost.macs}{where}"
        return None

    def remark(self, cost: Cost) -> str:
        """What to know of a chain that is no loss: why it has no MACs, or has some anew."""
        if self.traced and not self._extents:
            return "no call of it is counted on the example inputs"
        if self.cost(self.op).macs == 0 and cost.macs:
            added = f"adds {cost.macs} MACs" if self.traced else "adds MACs"
            return f"{added}: a table look-up has none"
        return ""

    def candidate(self, method: str, ranks: Ranks) -> Candidate:
        """The chain of a method at given ranks.

        Raises:
            RankfoldError: a rank is out of range; the message names the layer.
            Refused: the method failed or gave values that are not finite.
        """
        key = (method, ranks)
        if key not in self._candidates:
            self._candidates[key] = self._decompose(method, ranks)
        return self._candidates[key]

    def template_cost(self, method: str, ranks: Ranks) -> Cost:
        """The cost of a method at given ranks, without decomposing.

        Raises:
            RankfoldError: a rank is out of range; the message names the layer.
            Refused: the method failed.
        """
        try:
            return self.cost(self.methods[method].template(self.op, ranks))
        except RankfoldError as error:
            raise RankfoldError(f"layer {self.path!r}: {error}") from None

    def largest_within(self, method: str, limit: Cost, base: Ranks) -> Ranks | None:
        """The largest ranks in the proportions of `base` whose cost is within a limit."""
        most = self.methods[method].max_ranks(self.op)

        def scaled(factor: float) -> Ranks:
            return tuple(min(m, max(1, round(factor * b))) for b, m in zip(base, most, strict=True))

        if not self.template_cost(method, scaled(0.0)).within(limit):
            return None
        low, high = 0.0, max(m / b for m, b in zip(most, base, strict=True))
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            if self.template_cost(method, scaled(middle)).within(limit):
                low = middle
            else:
                high = middle
        return scaled(low)

    def _decompose(self, name: str, ranks: Ranks) -> Candidate:
        self.template_cost(name, ranks)
        rng = np.random.default_rng([self._seed, zlib.crc32(self.path.encode())])
        method = self.methods[name]
        spectrum = self.spectrum
        factored = method.decompose(
            self.op, ranks, spectrum=spectrum, placement=self._placement, rng=rng
        )
        if not math.isfinite(factored.error) or not all(
            np.isfinite(stage.weight).all() for stage in factored.chain
        ):
            raise Refused(f"{name} gave values that are not finite")
        return Candidate(name, ranks, factored.chain, self.cost(factored.chain), factored.error)


def _nominal_extent(op: Op) -> Extent:
    if not isinstance(op, (Conv, ConvTranspose)):
        return (1,)
    geo = geometry(op)
    if isinstance(op, ConvTranspose):
        return (1, *(_NOMINAL_OUTPUT + 2 * max(p) for p in geo.pads((1,) * geo.axes)))
    return (
        1,
        *((_NOMINAL_OUTPUT - 1) * s + r for s, r in zip(geo.stride, geo.reach, strict=True)),
    )
