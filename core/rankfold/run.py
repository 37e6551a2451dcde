"""One walk over the layers of a model: what `plan`, `compress` and `apply` have in common."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np

from rankfold.calibration import Calibration, Loss
from rankfold.candidates import Cost, Group, Layer
from rankfold.contracts import (
    Adapter,
    Choice,
    DataAware,
    Decomposition,
    Placement,
    Policy,
    Trace,
)
from rankfold.decision import Decision, build, decide
from rankfold.errors import RankfoldError, Refused
from rankfold.metric import Mismatch, check_moments
from rankfold.moments import LayerMoments, Moments
from rankfold.ops import Chain, Embedding, Extent, Op, describe, is_blank
from rankfold.plan import LayerPlan, Plan
from rankfold.policies.budget import Budget
from rankfold.progress import progress
from rankfold.refit import Refit
from rankfold.registry import registry
from rankfold.selection import Selection, listed
from rankfold.spectrum import magnitude
from rankfold.trials import Attempt, fast_enough, search

FEWEST = 16
"""Moments of fewer predictions than these do more harm than good: most classes are not seen."""
METHODS = ("svd", "tucker2", "spatial_svd", "channel_svd")
"""The default methods, in order of preference: those with a closed form or as good as one."""


class Run:
    """One walk over the layers of a model.

    Args:
        adapter: the model's adapter.
        model: the model.
        inputs: example inputs or None.
        methods: names of the allowed decompositions; None for the default ones.
        placement: how the scale is spread over a chain.
        seed: of all randomness.

    Raises:
        RankfoldError: an unknown placement, method or seed, or the model fails on the inputs.

    Attributes:
        adapter: the model's adapter.
        kinds: the class name of each layer by path, in the model's order.
        size: parameters of the model.
        moments: of the layers on calibration data; None without.
    """

    def __init__(
        self,
        adapter: Adapter,
        model: Any,
        inputs: Any,
        methods: str | Sequence[str] | None,
        placement: Placement,
        seed: int,
    ) -> None:
        if placement not in ("balanced", "classical"):
            raise RankfoldError(f"placement {placement!r}; use 'balanced' or 'classical'")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise RankfoldError(f"seed {seed!r}; use an int from 0 to 2**63 - 1")
        names = METHODS if methods is None else listed(methods)
        self.adapter = adapter
        self._model = model
        self._inputs = inputs
        self._calibration: Calibration | None = None
        self._spoilt: dict[str, str] = {}
        self._predicted: float | None = None
        self._remarks: list[str] = []
        self._layers: dict[str, Layer] = {}
        self._times: dict[Hashable, tuple[float, ...]] = {}
        self.moments: Moments | None = None
        self._trace: Trace | None = None if inputs is None else adapter.trace(model, inputs)
        self.kinds = adapter.layers(model)
        self.size = adapter.size(model)
        self._methods: dict[str, Decomposition] = registry().methods(names)
        self._placement: Placement = placement
        self._seed = seed

    def layer(self, paths: tuple[str, ...]) -> Layer:
        """The layer at a path.

        Raises:
            Refused: the adapter or the trace forbids to replace it.
        """
        extents: tuple[Extent, ...] | None = None
        if self._trace is not None:
            extents = self._trace.extents.get(paths[0], ())
        read = partial(self._read, paths[0])
        if paths[0] not in self._layers:
            self._layers[paths[0]] = Layer(
                paths,
                read,
                self._methods,
                extents,
                self._placement,
                self._seed,
                None if self.moments is None else self.moments.get(paths[0]),
                partial(self._seconds, paths[0], extents),
            )
        return self._layers[paths[0]]

    def _seconds(
        self, path: str, extents: Sequence[Extent] | None, chains: Sequence[Chain]
    ) -> tuple[float, ...]:
        """The median seconds of a layer and of chains in its place; measured once a signature."""
        if not isinstance(self.adapter, DataAware) or extents is None:
            raise RankfoldError(
                f"layer {path!r}: {type(self.adapter).__name__} measures no times; use macs="
            )
        op = self._read(path)
        key = (describe(op), op.weight.dtype, tuple(extents), tuple(map(_shapes, chains)))
        if key not in self._times:
            self._times[key] = self.adapter.seconds(self._model, path, chains, extents)
        return self._times[key]

    def _model_seconds(self) -> float:
        if not isinstance(self.adapter, DataAware):
            raise RankfoldError(f"{type(self.adapter).__name__} measures no times; use macs=")
        return self.adapter.model_seconds([self._model], self._inputs)[0]

    def learn(self, calibration: Any, loss: Loss | None, moments: Moments | None) -> None:
        """Takes or gathers the moments of all layers.

        Raises:
            RankfoldError: the data does not fit the model, or the adapter gathers no moments.
        """
        if moments is not None and not isinstance(moments, Moments):
            raise RankfoldError(
                f"moments: {type(moments).__name__}; give what rankfold.gather() returned"
            )
        self.moments = moments
        if moments is not None:
            self._check_moments(moments)
        if calibration is None:
            if loss is not None:
                raise RankfoldError("loss= needs calibration data; pass calibration=")
            return
        if not isinstance(self.adapter, DataAware):
            raise RankfoldError(
                f"{type(self.adapter).__name__} gathers no moments: leave calibration= out"
            )
        self._calibration = Calibration.of(calibration, self._inputs, loss)
        if moments is not None:
            return
        ops: dict[str, Op] = {}
        for path in self.kinds:
            try:
                ops[path] = self._read(path)
            except Refused:
                continue
        rng = np.random.default_rng(self._seed)
        with progress("calibrating", len(self._calibration.batches)) as advance:
            found = self.adapter.moments(self._model, self._calibration, ops, rng, advance)
        seen = predictions(found, ops)
        if seen < FEWEST:
            self._calibration = None
            self._remarks.append(f"calibration is not used: {seen} predictions; give {FEWEST}")
        else:
            self.moments = Moments(found, self._calibration.loss_name)

    def _check_moments(self, moments: Moments) -> None:
        for path in self.kinds:
            if path in moments:
                try:
                    check_moments(self._read(path), moments[path])
                except Refused as refused:
                    if isinstance(refused, Mismatch):
                        raise RankfoldError(f"moments: layer {path!r}: {refused.reason}") from None
        if self.kinds and not any(path in moments for path in self.kinds):
            raise RankfoldError(
                f"moments: of {', '.join(list(moments)[:3])} ..., none of which is a layer of this "
                "model; gather them for it"
            )

    def choices(
        self, selection: Selection, notes: list[str]
    ) -> Iterator[tuple[Layer, Choice] | LayerPlan]:
        """What is to be done to each layer, policy by policy; or its plan where that is settled."""
        paths = {path: (path, *self.adapter.aliases(self._model, path)) for path in self.kinds}
        selection.check(list(paths.values()))
        seen: dict[int, tuple[Policy, list[Layer]]] = {}
        costs: dict[str, Cost] = {}
        with progress("planning", len(self.kinds)) as advance:
            for path, kind in self.kinds.items():
                reason = selection.left_out(paths[path])
                try:
                    layer = self.layer(paths[path])
                except Refused as refused:
                    advance(path)
                    count = None if self._trace is None else self._trace.macs.get(path)
                    costs[path] = Cost(0, count or 0)
                    pair = None if count is None else (count, count)
                    yield LayerPlan(path=path, op=kind, reason=reason or refused.reason, macs=pair)
                    continue
                costs[path] = layer.cost(layer.op)
                reason = reason or self._unfit(layer)
                if reason:
                    advance(path)
                    yield layer, Choice(None, reason=reason)
                else:
                    policy = selection.policy_of(paths[path])
                    seen.setdefault(id(policy), (policy, []))[1].append(layer)
                layer.release()
            before = dict(costs)
            if getattr(selection.policy, "whole", False):  # its limits hold where nothing is left
                seen.setdefault(id(selection.policy), (selection.policy, []))
            order = sorted(seen.values(), key=lambda group: group[0] is selection.policy)
            for policy, layers in order:
                whole = self._whole(before, costs)
                own = [layer.path for layer in layers]
                rest = whole.less(sum((costs[p] for p in own), Cost(0, 0)))
                group = Group(layers, rest, self._whole(before, before), self._model_seconds)
                choices = policy.allocate(group)
                if not layers:
                    next(choices, None)
                for layer in layers:
                    choice = next(choices, None)
                    if not isinstance(choice, Choice):
                        raise RankfoldError(
                            f"layer {layer.path!r}: policy {policy!r} gave {choice!r} for it; a "
                            "policy yields one rankfold.Choice per layer"
                        )
                    if choice.method in layer.methods:
                        costs[layer.path] = layer.template_cost(choice.method, choice.ranks)
                    advance(layer.path)
                    yield layer, choice
                    layer.release()
                notes.extend(group.notes)
                if group.seconds is not None:
                    self._predicted = group.seconds[1] / group.seconds[0]

    def decisions(self, selection: Selection, notes: list[str]) -> Iterator[Decision]:
        """One decision per layer, without a refit."""
        for item in self.choices(selection, notes):
            yield Decision(item) if isinstance(item, LayerPlan) else decide(*item)

    def tried(self, selection: Selection, *, refit: bool, inplace: bool) -> tuple[Any, Plan]:
        """The smaller model and its plan, by whatever its policy wants tried out."""
        policy = selection.policy

        def attempt(trial: Policy, *, copy: bool = True) -> Attempt:
            return self._compressed(replace(selection, policy=trial), refit=refit, copy=copy)

        if not isinstance(policy, Budget):
            best = attempt(policy, copy=not inplace)
        elif policy.drop is not None:
            resource = "params" if self._trace is None else "macs"
            best = search(policy, self._model, partial(fast_enough, attempt), resource)
        elif policy.latency is not None:
            best = fast_enough(attempt, policy)
        else:
            best = attempt(policy, copy=not inplace)
        model = best.model
        if inplace:
            model = self.adapter.replace(self._model, best.modules, inplace=True)
        return model, msgspec.structs.replace(best.plan, policy=repr(policy))

    def _compressed(self, selection: Selection, *, refit: bool, copy: bool) -> Attempt:
        """What replaces the layers, in a copy of the model and measured there if there is one.

        A policy that has a whole model to keep within limits decides anew, without the layer, when
        one of its replacements cannot be built.
        """
        while True:
            notes: list[str] = []
            modules: dict[str, Any] = {}
            if self._calibration is None:
                found = self.decisions(selection, notes)
            else:
                found = self._followed(selection, notes, refit=refit)
            decided, spoilt = [], {}
            for decision in found:
                done = self.built(decision, modules)
                decided.append(done)
                if decision.layer.method is not None and done.method is None:
                    spoilt[done.path] = done.reason
            if spoilt and getattr(selection.policy, "whole", False):
                self._spoilt.update(spoilt)
                continue
            break
        for done in decided:
            registry().layer_done(done)
        plan = self.plan_of(decided, selection.policy, notes)
        if not copy:
            return Attempt(None, plan, modules)
        small = self.adapter.replace(self._model, modules, inplace=False)
        loss = latency = None
        if isinstance(self.adapter, DataAware) and self._predicted is not None:
            before, after = self.adapter.model_seconds([self._model, small], self._inputs)
            latency = after / before
        if isinstance(self.adapter, DataAware) and self._calibration is not None:
            loss = self._divergence(self.adapter, small, self._calibration)
        return Attempt(small, msgspec.structs.replace(plan, loss=loss, latency=latency), modules)

    def _followed(
        self, selection: Selection, notes: list[str], *, refit: bool
    ) -> Iterator[Decision]:
        """Decisions made while the model runs on the calibration data."""
        assert self._calibration is not None
        assert isinstance(self.adapter, DataAware)
        chosen: dict[str, tuple[Layer, Choice]] = {}
        ops: dict[str, Op] = {}
        for item in self.choices(selection, notes):
            if isinstance(item, LayerPlan):
                yield Decision(item)
                continue
            layer, choice = item
            left_out = choice.method is None and bool(
                selection.left_out(layer.paths) or self._unfit(layer)
            )
            if left_out or (choice.method is None and isinstance(layer.op, Embedding)):
                yield decide(layer, choice)
            else:
                chosen[layer.path] = item
                ops[layer.path] = layer.op
            layer.release()
        visitor = Refit(chosen, ops, sequential=refit, seed=self._seed)
        with progress("refitting" if refit else "measuring", len(chosen)) as advance:

            def visit(path: str, fit: Any, held: Any) -> Any:
                advance(path)
                return visitor.visit(path, fit, held)

            errors = self.adapter.follow(
                self._model,
                self._calibration,
                ops,
                visit,
                sequential=refit,
                rng=np.random.default_rng(self._seed),
            )
        for path, item in chosen.items():
            decision = visitor.decisions.get(path) or decide(*item)
            if path in errors and decision.chain is not None:
                measured = msgspec.structs.replace(decision.layer, measured=errors[path])
                decision = Decision(measured, decision.op, decision.chain)
            yield decision

    def _divergence(
        self, adapter: DataAware, small: Any, calibration: Calibration
    ) -> tuple[float, float]:
        try:
            return adapter.divergence(self._model, small, calibration.held_out())
        except RankfoldError:  # a model that takes batches of one size only
            return adapter.divergence(self._model, small, calibration)

    def _whole(self, before: Mapping[str, Cost], now: Mapping[str, Cost]) -> Cost:
        """What the model costs with what was decided so far."""
        known = sum(now.values(), Cost(0, 0))
        others = self.size - sum(cost.params for cost in before.values())
        return Cost(known.params + max(0, others), known.macs)

    def _unfit(self, layer: Layer) -> str:
        if layer.path in self._spoilt:
            return self._spoilt[layer.path]
        if self.moments is not None and layer.moments is None:
            return "it is not run on the calibration data"
        return _unfit(layer.op)

    def built(self, decision: Decision, modules: dict[str, Any]) -> LayerPlan:
        """Builds and checks the module of a decision, into `modules`; the plan says if it fails."""
        rng = np.random.default_rng(self._seed)
        done, module = build(self.adapter, self._model, decision, rng)
        if module is not None:
            modules[done.path] = module
        return done

    def plan_of(
        self,
        decided: Iterable[LayerPlan],
        policy: Policy,
        notes: Iterable[str] = (),
    ) -> Plan:
        """The plan, in the model's order."""
        done = {layer.path: layer for layer in decided}
        return Plan(
            layers=tuple(done[path] for path in self.kinds),
            policy=repr(policy),
            size=self.size,
            seed=self._seed,
            placement=self._placement,
            predicted_latency=self._predicted,
            notes=(*self._remarks, *notes),
        )

    def _read(self, path: str) -> Op:
        op = self.adapter.read(self._model, path)
        if self._trace is not None and path in self._trace.refusals:
            raise Refused(self._trace.refusals[path])
        return op


def predictions(moments: Mapping[str, LayerMoments], layers: Mapping[str, Op]) -> int:
    """How many predictions calibration data shows: examples, or tokens where each gets its own.

    The layer that is used least often says which; tables are no measure, they may be looked up for
    positions alone.
    """
    own = [m for path, m in moments.items() if not isinstance(layers[path], Embedding)]
    return min((int(m.samples * max(1.0, m.uses)) for m in own or moments.values()), default=0)


def _shapes(chain: Chain) -> tuple[object, ...]:
    return tuple((describe(stage), stage.bias is not None) for stage in chain)


def _unfit(op: Op) -> str:
    if is_blank(op):
        return "it has only a shape, no values"
    try:
        magnitude(op.weight)
    except Refused as refused:
        return refused.reason
    if op.bias is not None and not np.isfinite(op.bias).all():
        bad = op.bias.size - int(np.count_nonzero(np.isfinite(op.bias)))
        return f"the bias has {bad} NaN or infinite values of {op.bias.size}"
    return ""
