"""One layer as a policy sees it: candidates of every allowed method, with cost and error.

A `Layer` reads its op, computes its spectrum and decomposes only on demand, remembers what it has
computed, and forgets it on `release`, so that planning a model holds one layer at a time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankfold import linalg
from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.weighted_norm import Metric
from rankfold.decompose.base import Placement, RankTuple
from rankfold.decompose.guarded import Guarded
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.blas_threads import threads_for
from rankfold.layers.candidates import (
    Candidate,
    LayerCache,
    Offer,
    Priced,
    spread,
    undominated,
)
from rankfold.layers.cost_model import Costs
from rankfold.layers.output_error import loss_of, weighted
from rankfold.layers.settings import Settings, Usage, applicable
from rankfold.layers.spectrum_record import SpectrumLog
from rankfold.ops import Chain, Cost, Op
from rankfold.ops.interpolation import pivots_of_chain
from rankfold.ops.ownership import protected

_TIMED = 10
"""Offers of a method that are timed, each of which makes every turn longer: so many that a step
from one to the next is a ninth of what lies between the most accurate and the cheapest one."""
_FASTER = 0.97
"""Share of the layer's time that an offer must undercut: less is within the noise of timing."""
_UNTRACED = Usage()


class Layer:
    """One layer of a model, as a policy sees it.

    Args:
        paths: the layer's path in the model, then its further paths where it is shared.
        read: gives the op; called again after `release`.
        settings: the allowed decompositions, the placement, and the seed of the run, from which
            every layer derives a generator of its own.
        usage: what the model does with the layer.
        moments: of calibration data, or how to read them each time; None without.
        op: what `read` gives, where it is at hand already.
        reader: reads the op in another process; without it the op travels there. Chains then stay
            there.

    Attributes:
        path: the layer's path in the model.
        paths: that path and its further ones.
        methods: those of the allowed decompositions that apply, by name.
        refusals: for those that do not apply, why.
        placement: how the scale is spread over a chain.
        calls: how often the layer is called in one pass; None without example inputs.
        smaller_side: of the matrix of its weight.
        weight_size: how many numbers its weight has.
        folded: what the layer computes the op's weight by; "" where that is its own.
        costs: what it and chains in its place cost, from shapes alone.

    Example:
        A policy that takes the cheapest offer of each layer:

        >>> class Smallest:
        ...     def allocate(self, layers):
        ...         for layer in layers:
        ...             offer = min(layer.offers(), key=lambda offer: offer.cost.params)
        ...             yield rf.Choice(offer.method, offer.ranks)
        >>> rf.plan(nn.Sequential(nn.Linear(48, 64)), Smallest())["0"].ranks  # weight (64, 48)
        (1,)
    """

    def __init__(
        self,
        paths: tuple[str, ...],
        read: Callable[[], Op],
        settings: Settings,
        usage: Usage = _UNTRACED,
        moments: LayerMoments | Callable[[], LayerMoments] | None = None,
        *,
        op: Op | None = None,
        reader: Callable[[], Op] | None = None,
    ) -> None:
        self.path = paths[0]
        self._reader = reader
        self.folded = usage.folded
        self._timer = usage.timer
        self._priced: dict[int, Priced] = {}
        self._timed: dict[tuple[Offer, ...], tuple[float, list[Offer]]] = {}
        self._log = SpectrumLog()
        self._moments = moments
        self.paths = paths
        self._read = read
        self.placement: Placement = settings.placement
        self._seed = settings.seed
        self._op = None if op is None else protected(op)
        self._spectrum: Spectrum | None = None
        self._candidates: dict[tuple[str, RankTuple], Candidate] = {}
        self.traced = usage.extents is not None
        self.calls = None if usage.extents is None else len(usage.extents)
        # Read now, so that a layer that cannot be read is refused before any policy sees it. The
        # outline and the sizes are kept, the op only until `release`.
        op = self.op
        self.costs = Costs(op, usage)
        rows, *rest = op.weight.shape
        self.smaller_side = min(rows, math.prod(rest))
        self.weight_size = math.prod(op.weight.shape)
        self.methods, self.refusals = applicable(settings.methods, op, usage)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process: the op or how to read it, without the model."""
        op = self.op if self._reader is None else None
        state = {**vars(self), "_op": op, "_spectrum": None, "_timer": None, "_read": self._reader}
        return state | {"_moments": self.moments}

    @property
    def cache(self) -> LayerCache:
        """All that was computed so far."""
        # With a reader the layer was read in the other process so that it need not travel; neither
        # does a chain. Costs and losses are enough to choose by.
        candidates = dict(self._candidates)
        if self._reader is not None:
            candidates = {key: replace(chosen, chain=()) for key, chosen in candidates.items()}
        return LayerCache(dict(self._priced), candidates, self.spectra)

    def merge_cache(self, cache: LayerCache) -> None:
        """Take over what was computed elsewhere."""
        self._priced.update(cache.priced)
        self._candidates.update(cache.candidates)
        self._log.merge(cache.spectra)

    @property
    def op(self) -> Op:
        """The layer as an op, read if it is not at hand."""
        if self._op is None:
            self._op = protected(self._read())  # which may be the memory of the user's model
        return self._op

    @property
    def moments(self) -> LayerMoments | None:
        """Moments of calibration data, not kept where they can be read again; None without."""
        return self._moments() if callable(self._moments) else self._moments

    @property
    def has_moments(self) -> bool:
        """Whether there are moments, which are not read for that."""
        return self._moments is not None

    @property
    def spectrum(self) -> Spectrum:
        """The eigenpairs of the layer's mode Grams."""
        if self._spectrum is None:
            # One spectrum serves every method and every rank.
            moments = self.moments
            metric = None if moments is None else Metric(self.op, moments)
            self._spectrum = Spectrum(self.op, metric)
        return self._spectrum

    @property
    def contenders(self) -> dict[str, Guarded]:
        """The allowed methods without those that another allowed one surpasses on this layer."""
        return {
            # "Surpassed": on this layer another method has the same chains or better ones at every
            # cost.
            name: method
            for name, method in self.methods.items()
            if method.surpassed(self.costs.outline) not in self.methods
        }

    def offers(self, multiple_of: int = 1) -> list[Offer]:
        """Return all allowed methods at a spaced grid of ranks; none that grows or is dominated.

        Args:
            multiple_of: of the ranks, where there are such.
        """
        return self.priced(multiple_of).offers

    def priced(self, multiple_of: int = 1) -> Priced:
        """Return the offers, and what else was learnt on the way to them.

        Args:
            multiple_of: of the ranks, where there are such.
        """
        if multiple_of not in self._priced:
            with threads_for(self.smaller_side):
                self._priced[multiple_of] = self._price(multiple_of)
        return self._priced[multiple_of]

    def _price(self, multiple_of: int) -> Priced:
        plain: list[Offer] = []
        interpolative: list[Offer] = []
        losses: dict[str, dict[RankTuple, float]] = {}
        estimates: dict[str, Sequence[tuple[RankTuple, float | None]]] = {}
        failures: dict[str, str] = {}
        op = self.op  # read out here: a file that cannot be read is no fault of a method
        for name, method in self.contenders.items():
            points: dict[RankTuple, float] = {}
            offers = interpolative if method.interpolates else plain
            try:
                # The errors of an interpolative method are those of the one underneath: estimated
                # once for both.
                source = method.interpolates or name
                if source not in estimates:
                    estimates[source] = method.error_at_ranks(op, self.spectrum, multiple_of)
                for ranks, squared in estimates[source]:
                    cost = self.cost_as_ranked(name, ranks)
                    grew = self.why_not_smaller(cost) is not None
                    # Where a method cannot tell its error without decomposing, it is asked only for
                    # ranks that may be chosen. An error that is free is kept for ranks that grow,
                    # too.
                    if squared is None and grew:
                        continue
                    loss = (
                        self.candidate(name, ranks).loss
                        if squared is None
                        else loss_of(squared, self.spectrum)
                    )
                    if math.isfinite(loss):
                        points[ranks] = loss
                        if not grew:
                            offers.append(Offer(name, ranks, cost, loss))
            except (Refused, RankfoldError) as fault:  # ranks of its own, not the user's
                failures[name] = str(fault)
            losses[name] = points
        fronts = (undominated(plain), undominated(interpolative))
        return Priced(undominated([*plain, *interpolative]), fronts, losses, failures)

    def timed_offers(self, *fronts: Sequence[Offer]) -> tuple[float, list[Offer]]:
        """Return the seconds of the layer, and a few offers that measure faster, with theirs.

        Args:
            fronts: offers, of each of which a few are measured.

        Raises:
            RankfoldError: nothing measures times here.
        """
        if self._timer is None:
            raise RankfoldError(f"layer {self.path!r}: its adapter measures no times")
        few = tuple(offer for front in fronts for offer in spread(front, _TIMED))
        if few not in self._timed:
            # Times do not depend on values, so templates will do and nothing is decomposed.
            chains = [self.methods[o.method].template(self.op, o.ranks) for o in few]
            first, *others = self._timer(chains)
            timed = [replace(o, seconds=s) for o, s in zip(few, others, strict=True)]
            self._timed[few] = first, [o for o in timed if o.seconds < _FASTER * first]
        return self._timed[few]

    @property
    def loss_if_dropped(self) -> float:
        """The loss of dropping the weight altogether."""
        with threads_for(self.smaller_side):
            return loss_of(self.spectrum.weight_of_all, self.spectrum)

    def with_method(self, method: str) -> Layer:
        """Return the layer with one allowed method only.

        It shares spectrum and candidates. It has offers of its own, which no other method's beat.
        """
        view = object.__new__(Layer)
        vars(view).update(vars(self))  # copy.copy() would make what travels to another process
        view.methods = {name: self.methods[name] for name in self.methods if name == method}
        view.refusals = {name: why for name, why in self.refusals.items() if name == method}
        view._priced, view._timed = {}, {}
        return view

    def set_op(self, op: Op) -> None:
        """Set the op, where it cannot be read just now, and forget what is known of another."""
        if op is not self._op:
            self.release()
            self._op = op

    @property
    def spectra(self) -> SpectrumLog:
        """Records of the spectra that were computed so far."""
        if self._spectrum is not None:
            self._log.take(self._spectrum)
        return self._log

    def release(self) -> None:
        """Forget the op, the spectrum and all candidates, but for what is recorded of them."""
        _ = self.spectra  # taken down before they go
        self._op = self._spectrum = None
        self._candidates.clear()

    def cost(self, ops: Op | Chain) -> Cost:
        """Cost of the layer or of a chain in its place; see `Costs.of`."""
        return self.costs.of(ops)

    def why_not_smaller(self, cost: Cost) -> str | None:
        """Return why a chain of that cost is no gain; see `Costs.why_not_smaller`."""
        return self.costs.why_not_smaller(cost)

    def remark(self, cost: Cost) -> str:
        """Return a remark on the MACs of a chain that is a gain; see `Costs.remark`."""
        return self.costs.remark(cost)

    def candidate(self, method: str, ranks: RankTuple) -> Candidate:
        """Return the chain of a method at given ranks.

        Raises:
            RankfoldError: a rank is out of range; the message names the layer.
            Refused: the method failed or gave values that are not finite.
        """
        key = (method, ranks)
        if key not in self._candidates:
            with threads_for(self.smaller_side):
                self._candidates[key] = self._decompose(method, ranks)
        return self._candidates[key]

    def template_cost(self, method: str, ranks: RankTuple) -> Cost:
        """Return the cost of a method at given ranks, without decomposing.

        Raises:
            RankfoldError: a rank is out of range; the message names the layer.
            Refused: the method failed.
        """
        try:
            return self.costs.at_ranks(self.methods[method], ranks)
        except RankfoldError as error:
            raise RankfoldError(f"layer {self.path!r}: {error}") from None

    def cost_as_ranked(self, method: str, ranks: RankTuple) -> Cost:
        """Return the cost of a method at ranks that it has given itself.

        Raises:
            Refused: the method failed, or its ranks are out of its own range.
        """
        try:
            return self.template_cost(method, ranks)
        except RankfoldError as error:
            raise Refused(f"{method} gave ranks that it does not take: {error}") from None

    def _decompose(self, name: str, ranks: RankTuple) -> Candidate:
        # Ranks out of range are found here, as an error of the call. After this, an error of the
        # method is a fault of the method, which costs the layer and not the call.
        counted = self.template_cost(name, ranks)
        # By the path, so that a layer's numbers depend neither on the order of layers nor on the
        # process that it is decomposed in. `hash` would not do: that of texts differs from process
        # to process.
        rng = np.random.default_rng([self._seed, zlib.crc32(self.path.encode())])
        method = self.methods[name]
        op, spectrum = self.op, self.spectrum
        try:
            factored = method.decompose(
                op, ranks, spectrum=spectrum, placement=self.placement, rng=rng
            )
        except RankfoldError as fault:  # the ranks have been found to be in range
            raise Refused(f"{name} failed: {fault}") from fault
        if not math.isfinite(factored.error) or not all(
            linalg.is_finite(stage.weight) for stage in factored.chain
        ):
            raise Refused(f"{name} gave values that are not finite")
        cost = self.cost(factored.chain)
        if cost != counted:
            raise Refused(
                f"{name} has multilinear_costs, but its chain costs {cost}, not {counted}"
            )
        plain = Candidate(
            name,
            ranks,
            factored.chain,
            cost,
            factored.error,
            factored.error**2,
            remark=factored.remark,
            sensitivity=factored.sensitivity,
            pivots=pivots_of_chain(factored.chain),
        )
        return plain if spectrum.metric is None else weighted(plain, op, spectrum)
