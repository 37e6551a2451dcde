"""What one layer offers a policy: candidates of every allowed method, with cost and error.

A `Layer` reads its op, computes its spectrum and decomposes only on demand, remembers what it has
computed, and forgets it on `release`, so that planning a model holds one layer at a time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from rankfold import linalg
from rankfold.contracts import Decomposition, Placement, Ranks
from rankfold.errors import RankfoldError, Refused
from rankfold.guarded import Guarded
from rankfold.metric import Metric, rows_of
from rankfold.moments import LayerMoments
from rankfold.offers import Candidate, Cost, Offer, spread, undominated
from rankfold.ops import (
    Array,
    Chain,
    Conv,
    ConvTranspose,
    Embedding,
    Extent,
    Op,
    as_chain,
    geometry,
    macs,
    params,
    with_weight,
)
from rankfold.reference import reconstruct
from rankfold.spectrum import Spectrum

_NOMINAL_OUTPUT = 32
_BISECTIONS = 24
_TIMED = 10
_FASTER = 0.97
Timer: TypeAlias = Callable[[Sequence[Chain]], Sequence[float]]


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
        moments: of calibration data; None without.
        timer: gives the seconds of the layer and of chains in its place.
        attended: MACs of products with the table of an `Embedding`, beside look-ups.
        reader: reads the op in another process; without it the op travels there. Chains then stay
            there.

    Attributes:
        path: the layer's path in the model.
        paths: that path and its further ones.
        methods: those of the allowed decompositions that apply, by name.
        refusals: for those that do not apply, why.
        placement: how the scale is spread over a chain.
        calls: how often the layer is called in one pass; None without example inputs.
        order: the smaller side of its matrix.
        numbers: how many its weight has.
    """

    def __init__(
        self,
        paths: tuple[str, ...],
        read: Callable[[], Op],
        methods: Mapping[str, Decomposition],
        extents: Sequence[Extent] | None,
        placement: Placement,
        seed: int,
        moments: LayerMoments | None = None,
        timer: Timer | None = None,
        attended: int = 0,
        reader: Callable[[], Op] | None = None,
    ) -> None:
        self.path = paths[0]
        self._reader = reader
        self._attended = attended
        self._timer = timer
        self._offers: dict[int, list[Offer]] = {}
        self._timed: tuple[float, list[Offer]] | None = None
        self.moments = moments
        self.paths = paths
        self._read = read
        self.placement: Placement = placement
        self._seed = seed
        self._op: Op | None = None
        self._spectrum: Spectrum | None = None
        self._candidates: dict[tuple[str, Ranks], Candidate] = {}
        self.traced = extents is not None
        self._extents = extents
        self.calls = None if extents is None else len(extents)
        self.methods: dict[str, Guarded] = {}
        self.refusals: dict[str, str] = {}
        op = self.op
        rows, *rest = op.weight.shape
        self.order = min(rows, math.prod(rest))
        self.numbers = math.prod(op.weight.shape)
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

    def __getstate__(self) -> dict[str, Any]:
        """The layer for another process: with its op or how to read it, without the model."""
        op = self.op if self._reader is None else None
        return {**vars(self), "_op": op, "_spectrum": None, "_timer": None, "_read": self._reader}

    @property
    def findings(self) -> tuple[dict[int, list[Offer]], dict[tuple[str, Ranks], Candidate]]:
        """What was found out so far: offers and candidates."""
        candidates = dict(self._candidates)
        if self._reader is not None:
            candidates = {key: replace(found, chain=()) for key, found in candidates.items()}
        return dict(self._offers), candidates

    def learn(
        self, found: tuple[dict[int, list[Offer]], dict[tuple[str, Ranks], Candidate]]
    ) -> None:
        """Takes over what was found out elsewhere."""
        self._offers.update(found[0])
        self._candidates.update(found[1])

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
            metric = None if self.moments is None else Metric(self.op, self.moments)
            self._spectrum = Spectrum(self.op, metric)
        return self._spectrum

    def offers(self, multiple_of: int = 1) -> list[Offer]:
        """Every allowed method at a well-spaced grid of ranks; none that grows or is dominated.

        Args:
            multiple_of: of the ranks, where there are such.
        """
        if multiple_of in self._offers:
            return self._offers[multiple_of]
        found: list[Offer] = []
        for name, method in self.methods.items():
            try:
                for ranks, squared in method.offers(self.op, self.spectrum, multiple_of):
                    cost = self.template_cost(name, ranks)
                    if self.grew(cost) is not None:
                        continue
                    if squared is None:
                        loss = self.candidate(name, ranks).loss
                    else:
                        loss = self._loss(squared)
                    if math.isfinite(loss):
                        found.append(Offer(name, ranks, cost, loss))
            except Refused as refused:
                self.refusals[name] = refused.reason
        self._offers[multiple_of] = undominated(found)
        return self._offers[multiple_of]

    def faster(self, offers: Sequence[Offer]) -> tuple[float, list[Offer]]:
        """The seconds of the layer, and a few of the offers that measure faster, with theirs.

        Raises:
            RankfoldError: nothing measures times here.
        """
        if self._timer is None:
            raise RankfoldError(f"layer {self.path!r}: its adapter measures no times")
        if self._timed is None:
            few = spread(offers, _TIMED)
            chains = [self.methods[o.method].template(self.op, o.ranks) for o in few]
            first, *others = self._timer(chains)
            timed = [replace(o, seconds=s) for o, s in zip(few, others, strict=True)]
            self._timed = first, [o for o in timed if o.seconds < _FASTER * first]
        return self._timed

    @property
    def worth(self) -> float:
        """The loss of dropping the weight altogether."""
        return self._loss(self.spectrum.weight_of_all)

    def only(self, method: str) -> Layer:
        """The same layer with one allowed method, sharing its spectrum and its candidates."""
        view = object.__new__(Layer)
        vars(view).update(vars(self))  # copy.copy() would make what travels to another process
        view._offers, view._timed, view.refusals = {}, None, dict(self.refusals)
        view.methods = {name: self.methods[name] for name in self.methods if name == method}
        return view

    def hold(self, op: Op) -> None:
        """Takes the op, where it cannot be read just now."""
        self._op = op

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
        count = sum(macs(chain, extent) for extent in extents)
        if self._attended:  # with the table, or with one factor of it after the other
            count += self._attended * params(chain) // params(as_chain(self.op))
        return Cost(params(chain), count)

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
            self.op, ranks, spectrum=spectrum, placement=self.placement, rng=rng
        )
        if not math.isfinite(factored.error) or not all(
            linalg.is_finite(stage.weight) for stage in factored.chain
        ):
            raise Refused(f"{name} gave values that are not finite")
        cost = self.cost(factored.chain)
        metric = spectrum.metric
        if metric is None:
            squared = factored.error**2
            return Candidate(
                name,
                ranks,
                factored.chain,
                cost,
                factored.error,
                squared,
                remark=factored.remark,
                sensitivity=factored.sensitivity,
            )
        rows = rows_of(self.op) / spectrum.scale
        dense = reconstruct(self.op, factored.chain) / spectrum.scale
        apart = rows_of(with_weight(self.op, dense)) - rows
        loss = self._loss(metric.squared(apart))
        chain = shifted(factored.chain, metric, -spectrum.scale * apart)
        whole = metric.output(rows) + self._mean_output(metric, rows)
        output = math.sqrt(max(0.0, metric.output(apart)) / max(whole, 1e-300))
        return Candidate(
            name,
            ranks,
            chain,
            cost,
            factored.error,
            loss,
            output,
            factored.remark,
            factored.sensitivity,
        )

    def _mean_output(self, metric: Metric, rows: Array) -> float:
        """‖E[y]‖², over the scale of the weight, where that is no part of the moment."""
        if metric.mean is None or self.op.bias is None:
            return 0.0
        mean = np.einsum("god,gd->go", rows, metric.mean).reshape(-1)
        mean = mean + self.op.bias / self.spectrum.scale
        return float(np.vdot(mean, mean))

    def _loss(self, squared: float) -> float:
        """A squared error in the units of the spectrum as a loss that compares across layers."""
        spectrum = self.spectrum
        if spectrum.metric is None:
            return squared / spectrum.energy
        return squared * spectrum.scale**2 * spectrum.metric.uses


def shifted(chain: Chain, metric: Metric, lost: Array) -> Chain:
    """A chain whose bias makes up for what the error of the weight does to the mean output.

    Args:
        chain: in place of a layer.
        metric: of the layer.
        lost: W − Ŵ, (groups, out/groups, d).
    """
    last = chain[-1]
    if metric.mean is None or last.bias is None or isinstance(last, Embedding):
        return chain
    shift = np.einsum("god,gd->go", lost, metric.mean).reshape(-1)
    bias = (last.bias.astype(np.float64) + shift).astype(last.bias.dtype)
    return (*chain[:-1], replace(last, bias=bias))


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
