"""One walk over the layers of a model: what `plan`, `compress` and `apply` have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from rankfold.adapters.base import Adapter, DataAware, Distributed, Folding, Trace
from rankfold.adapters.output_layers import output_layers
from rankfold.calibration.batches import Calibration, Loss
from rankfold.calibration.moments import FEWEST, predictions
from rankfold.calibration.weighted_norm import Mismatch, check_moments
from rankfold.decompose.base import Decomposition, Placement
from rankfold.decompose.spectrum import magnitude
from rankfold.errors import RankfoldError, Refused
from rankfold.faults import contained, of_adapter
from rankfold.layers.group import Group
from rankfold.layers.layer import Layer
from rankfold.layers.parallel import each, limited, threads_for
from rankfold.linalg import host, is_finite
from rankfold.ops import Chain, Cost, Embedding, Extent, Op, describe, is_blank, on_host
from rankfold.pipeline.allocation import allocated, named
from rankfold.pipeline.replacement import Decision, build, decide
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.plugins.registry import registry
from rankfold.policies.base import Choice, Policy, judged
from rankfold.policies.selection import Selection, listed
from rankfold.progress import progress
from rankfold.storage.moments_file import Moments

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
        executor: works on several layers at once; None for one after the other.

    Raises:
        RankfoldError: an unknown placement, method or seed, or the model fails on the inputs.

    Attributes:
        adapter: the model's adapter.
        kinds: the class name of each layer by path, in the model's order.
        size: parameters of the model.
        model: the model.
        inputs: example inputs or None.
        seed: of all randomness.
        calibration: the batches, where they serve.
        moments: of the layers on calibration data; None without.
        spoilt: by path, why a replacement could not be built.
        predicted: the time of the smaller model as a share of the original's, where it is limited.
    """

    def __init__(
        self,
        adapter: Adapter,
        model: Any,
        inputs: Any,
        methods: str | Sequence[str] | None,
        placement: Placement,
        seed: int,
        executor: Executor | None = None,
    ) -> None:
        if executor is not None and not hasattr(executor, "submit"):
            raise RankfoldError(
                f"executor: {type(executor).__name__}; give a concurrent.futures.Executor"
            )
        self._executor = executor
        if placement not in ("balanced", "classical"):
            raise RankfoldError(f"placement {placement!r}; use 'balanced' or 'classical'")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise RankfoldError(f"seed {seed!r}; use an int from 0 to 2**63 - 1")
        names = METHODS if methods is None else listed(methods)
        self.adapter = adapter
        self.model = model
        self.inputs = inputs
        self.calibration: Calibration | None = None
        self.spoilt: dict[str, str] = {}
        self.predicted: float | None = None
        self._remarks: list[str] = []
        self._layers: dict[str, Layer] = {}
        self._times: dict[Hashable, tuple[float, ...]] = {}
        self.moments: Moments | None = None
        with of_adapter(adapter):
            self._trace: Trace | None = None if inputs is None else adapter.trace(model, inputs)
            self.kinds = adapter.layers(model)
            self.size = adapter.size(model)
        self._methods: dict[str, Decomposition] = registry().methods(names)
        self._placement: Placement = placement
        self.seed = seed

    @property
    def traced(self) -> bool:
        """Whether MACs can be counted."""
        return self._trace is not None

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
                self.seed,
                None if self.moments is None else self.moments.get(paths[0]),
                partial(self._seconds, paths[0], extents),
                self._attended(paths[0]),
                self._reader(paths[0]),
                self.adapter.folded(self.model, paths[0])
                if isinstance(self.adapter, Folding)
                else "",
            )
        return self._layers[paths[0]]

    @property
    def threads(self) -> int | None:
        """How many threads BLAS takes: by all layers that were read, whatever is done to them.

        The number may show in the last bits of a result, so it has to be the same when a plan is
        made, when it is carried out at once and when it is carried out later.
        """
        return threads_for(layer.order for layer in self._layers.values())

    def _reader(self, path: str) -> Callable[[], Op] | None:
        if isinstance(self.adapter, Distributed):
            return self.adapter.reader(self.model, path)
        return None

    def _attended(self, path: str) -> int:
        if self._trace is None or not isinstance(self._read(path), Embedding):
            return 0
        return self._trace.macs.get(path, 0)

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
            self._times[key] = self.adapter.seconds(self.model, path, chains, extents)
        return self._times[key]

    def _model_seconds(self) -> float:
        if not isinstance(self.adapter, DataAware):
            raise RankfoldError(f"{type(self.adapter).__name__} measures no times; use macs=")
        return self.adapter.model_seconds([self.model], self.inputs)[0]

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
        self.calibration = Calibration.of(calibration, self.inputs, loss)
        if moments is not None:
            return
        ops: dict[str, Op] = {}
        for path in self.kinds:
            try:
                ops[path] = self._read(path)
            except Refused:
                continue
        rng = np.random.default_rng(self.seed)
        steps = len(self.calibration.batches)
        with progress("calibrating", steps) as advance, of_adapter(self.adapter):
            found = self.adapter.moments(self.model, self.calibration, ops, rng, advance)
        seen = predictions(found, ops)
        if seen < FEWEST:
            self.calibration = None
            self._remarks.append(f"calibration is not used: {seen} predictions; give {FEWEST}")
        else:
            self.moments = Moments(found, self.calibration.loss_name)

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
        with of_adapter(self.adapter):
            paths = {path: (path, *self.adapter.aliases(self.model, path)) for path in self.kinds}
        selection.check(list(paths.values()))
        outputs = output_layers(self.adapter, self.model, self._trace, list(self.kinds))
        asked: list[tuple[Layer, Policy, str]] = []
        inner = False  # whether there is a layer to compress besides those that give the outputs
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
                unfit = self.unfit(layer)
                inner |= not unfit and bool(layer.methods) and path not in outputs
                reason = reason or unfit
                if reason:
                    advance(path)
                    yield layer, Choice(None, reason=reason)
                else:
                    policy = selection.policy_of(paths[path])
                    spared = judged(policy) == "layer" and not selection.names(paths[path])
                    asked.append((layer, policy, outputs.get(path, "") if spared else ""))
                layer.release()
            before = dict(costs)
            seen: dict[int, tuple[Policy, list[Layer]]] = {}
            for layer, policy, reason in asked:
                if reason and inner:  # a model of nothing else was handed over for its outputs
                    advance(layer.path)
                    yield layer, Choice(None, reason=reason)
                    layer.release()
                else:
                    seen.setdefault(id(policy), (policy, []))[1].append(layer)
            if judged(selection.policy) == "model":  # its limits hold where nothing is left
                seen.setdefault(id(selection.policy), (selection.policy, []))
            order = sorted(seen.values(), key=lambda group: group[0] is selection.policy)
            for policy, layers in order:
                whole = self._whole(before, costs)
                own = [layer.path for layer in layers]
                rest = whole.less(sum((costs[p] for p in own), Cost(0, 0)))
                whole = self._whole(before, before)
                measure, threads = self._model_seconds, self.threads
                group = Group(layers, rest, whole, measure, self._executor, threads)
                with limited(threads):
                    for layer, choice in self._chosen(policy, group):
                        if choice.method in layer.methods:
                            costs[layer.path] = layer.template_cost(choice.method, choice.ranks)
                        advance(layer.path)
                        yield layer, choice
                        layer.release()
                notes.extend(group.notes)
                if group.seconds is not None:
                    self.predicted = group.seconds[1] / group.seconds[0]

    def _chosen(self, policy: Policy, group: Group) -> Iterator[tuple[Layer, Choice]]:
        """What a policy chooses; with an executor, decomposed there where it chooses for all."""
        pairs = allocated(policy, group)
        wanted = self.calibration is None and judged(policy) == "model"
        if self._executor is None or not wanted:
            yield from pairs
            return
        found = list(pairs)
        tried = each(group, _tried, [choice for _, choice in found])
        for pair, _ in zip(found, tried, strict=True):
            yield pair

    def decisions(self, selection: Selection, notes: list[str]) -> Iterator[Decision]:
        """One decision per layer, without a refit."""
        for item in self.choices(selection, notes):
            yield Decision(item) if isinstance(item, LayerPlan) else decide(*item)

    def _whole(self, before: Mapping[str, Cost], now: Mapping[str, Cost]) -> Cost:
        """What the model costs with what was decided so far."""
        known = sum(now.values(), Cost(0, 0))
        others = self.size - sum(cost.params for cost in before.values())
        return Cost(known.params + max(0, others), known.macs)

    def unfit(self, layer: Layer) -> str:
        """Why no policy is asked about a layer; "" where one is."""
        if layer.path in self.spoilt:
            return self.spoilt[layer.path]
        if self.moments is not None and layer.moments is None:
            return "it has no moments: it is not run on the calibration data as a layer of its own"
        return _unfit(layer.op)

    def built(self, decision: Decision, modules: dict[str, Any]) -> LayerPlan:
        """Builds and checks the module of a decision, into `modules`; the plan says if it fails."""
        rng = np.random.default_rng(self.seed)
        done, module = build(self.adapter, self.model, decision, rng)
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
            policy=named(policy),
            size=self.size,
            seed=self.seed,
            placement=self._placement,
            predicted_latency=self.predicted,
            notes=(*self._remarks, *notes),
        )

    def _read(self, path: str) -> Op:
        with contained("reading the layer", Refused):
            op = self.adapter.read(self.model, path)
        if self._trace is not None and path in self._trace.refusals:
            raise Refused(self._trace.refusals[path])
        return op if self.calibration is None and self.moments is None else on_host(op)


def _tried(layer: Layer, choice: Choice) -> None:
    """Decomposes a layer; what goes wrong goes wrong again where it can be told."""
    if choice.method in layer.methods:
        with suppress(RankfoldError, Refused):
            layer.candidate(choice.method, choice.ranks)


def _shapes(chain: Chain) -> tuple[object, ...]:
    return tuple((describe(stage), stage.bias is not None) for stage in chain)


def _unfit(op: Op) -> str:
    if is_blank(op):
        return "it has only a shape, no values"
    try:
        magnitude(op.weight)
    except Refused as refused:
        return refused.reason
    if op.bias is not None and not is_finite(op.bias):
        bias = host(op.bias)
        bad = bias.size - int(np.count_nonzero(np.isfinite(bias)))
        return f"the bias has {bad} NaN or infinite values of {bias.size}"
    return ""
