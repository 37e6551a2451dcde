"""Turn a policy's choice for one layer into a decomposed, built and checked replacement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import numpy as np

from rankfold import linalg
from rankfold.adapters.capabilities import Capabilities
from rankfold.calibration.moments import input_form
from rankfold.decompose.interpolative import with_pivots
from rankfold.errors import RankfoldError, Refused
from rankfold.faults import contained, shown
from rankfold.layers.blas_threads import threads_for
from rankfold.layers.layer import Layer
from rankfold.layers.spectrum_record import SpectrumRecord, telling
from rankfold.ops import Chain, Op, Pivots, describe
from rankfold.ops.ownership import copied
from rankfold.pipeline.verify import check_chain
from rankfold.plan.plan import LayerPlan
from rankfold.policies.base import Choice


@dataclass(frozen=True, eq=False)
class Decision:
    """The plan of one layer, with op and chain where it is decomposed or refitted.

    The chain of a layer that is refitted as it is, is the op with its new weights.
    """

    layer: LayerPlan
    op: Op | None = None
    chain: Chain | None = None

    def with_macs(self, pair: tuple[int, int] | None) -> Decision:
        """Return the decision with another count of MACs (before, after)."""
        return replace(self, layer=msgspec.structs.replace(self.layer, macs=pair))

    def with_spectra(self, spectra: tuple[SpectrumRecord, ...]) -> Decision:
        """Return the decision with the spectra that its ranks were chosen by."""
        if self.layer.method is None:
            spectra = telling(spectra, {}, ())
        return replace(self, layer=msgspec.structs.replace(self.layer, spectra=spectra))

    def with_pivots(self, pivots: tuple[Pivots, ...]) -> Decision:
        """Return the decision with the pivots of a plan; with its own where that has none.

        The weights of a chain go with its pivots. Where a plan pins them, weights that are saved
        apart from it, and loaded into another model that was made by it, fit there.

        Raises:
            Refused: they do not fit the chain.
        """
        if self.chain is None or not pivots or pivots == self.layer.pivots:
            return self
        try:
            chain = with_pivots(self.chain, pivots)
        except RankfoldError as error:
            raise Refused(str(error)) from None
        layer = msgspec.structs.replace(self.layer, pivots=pivots)
        return replace(self, layer=layer, chain=chain)


def decide(layer: Layer, choice: Choice) -> Decision:
    """Decompose a layer as a policy chose: the chain, its cost and its error.

    Raises:
        RankfoldError: a rank is out of range; the message names the layer.
    """
    outline, before = layer.costs.outline, layer.costs.before
    op: Op | None = None  # a layer that stays is not read for it
    after, error, chain, method, reason = before, None, None, choice.method, choice.reason
    predicted = sensitivity = None
    pivots: tuple[Pivots, ...] = ()
    places: Mapping[str, int] = {}
    # A policy may name a method that does not apply to this layer; that costs the layer, not the
    # call.
    if method is not None and method not in layer.methods:
        reason = layer.refusals.get(method, f"method {method!r} is not allowed here")
        method = None
    if method is not None:
        op = layer.op  # read out here: a file that cannot be read is no fault of the method
        try:
            candidate = layer.candidate(method, choice.ranks)
        except Refused as refused:
            method, reason = None, refused.reason
        else:
            after, error, chain = candidate.cost, candidate.error, candidate.chain
            predicted = candidate.output
            sensitivity, pivots = candidate.sensitivity, candidate.pivots
            places = layer.methods[method].ranks_of_unfoldings
            # Each remark once and in this order: policy and method may have said the same.
            remarks = [reason, layer.remark(after), candidate.remark]
            if layer.folded:
                remarks.append(f"{layer.folded} folded in: fine-tuning goes on without it")
            reason = "; ".join(dict.fromkeys(remark for remark in remarks if remark))
    decided = LayerPlan(
        path=layer.path,
        method=method,
        ranks=choice.ranks if method is not None else (),
        reason=reason,
        error=error,
        params=(before.params, after.params),
        # Those of a nominal input compare the chains of one layer only, and are not put into a
        # plan.
        macs=(before.macs, after.macs) if layer.traced and layer.costs.counted else None,
        op=describe(outline),
        predicted=predicted,
        sensitivity=sensitivity,
        moments=input_form(outline) if layer.has_moments else "",
        pivots=pivots,
        spectra=telling(layer.spectra.records, places, choice.ranks),
    )
    return Decision(decided, op if chain is not None else None, chain)


def build(
    can: Capabilities, model: Any, decision: Decision, rng: np.random.Generator
) -> tuple[LayerPlan, Any]:
    """Return the plan of a layer and its checked native module, or None and why the layer stays."""
    done, op, chain = decision.layer, decision.op, decision.chain
    if op is None or chain is None:
        return done, None
    stages = tuple(map(copied, chain))  # the module may keep these arrays, and be trained with them
    try:
        with contained("building the replacement", Refused):
            # A layer that stays whole but was refitted: the same kind of module with other numbers
            # in it, of which there is no chain to check.
            if done.method is None:
                assert can.calibrates is not None
                return done, can.calibrates.refilled(model, done.path, stages[0])
            assert done.error is not None
            module = can.builder.build(model, done.path, stages)
            # A module can be held to the coarser of two dtypes only: its own, and the one the op
            # was read in.
            epsilon = max(can.builder.precision(model, done.path), linalg.epsilon(op.weight))
            # Small matrices here as well, whatever the size of the layer is.
            with threads_for(0):
                check_chain(op, chain, done.error, partial(can.builder.run, module), epsilon, rng)
    except Refused as refused:
        unfilled = f"{done.reason}; not refitted: {refused.reason}"
        return undone(done, refused.reason if done.method else unfilled), None
    except RankfoldError as error:
        return undone(done, f"building the replacement failed: {shown(error)}"), None
    return done, module


def undone(done: LayerPlan, reason: str) -> LayerPlan:
    """Return the plan of a layer that is left alone after all."""
    return msgspec.structs.replace(
        done,
        method=None,
        ranks=(),
        reason=reason,
        error=None,
        predicted=None,
        measured=None,
        sensitivity=None,
        pivots=(),
        spectra=telling(done.spectra, {}, ()),
        refit=False,
        params=None if done.params is None else (done.params[0], done.params[0]),
        macs=None if done.macs is None else (done.macs[0], done.macs[0]),
    )
