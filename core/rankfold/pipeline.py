"""plan, apply, compress: the only place where the steps are put in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rankfold.candidates import Layer
from rankfold.contracts import Adapter, Choice, Decomposition, Placement, Policy, Trace
from rankfold.decision import Decision, build, decide
from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Extent, Op, describe, is_blank
from rankfold.plan import LayerPlan, Plan, validate
from rankfold.progress import progress
from rankfold.registry import registry
from rankfold.selection import Selection, listed
from rankfold.spectrum import magnitude

METHODS = ("svd", "tucker2", "spatial_svd", "channel_svd")
"""The default methods, in order of preference: those with a closed form or as good as one."""


@dataclass(frozen=True)
class Compressed:
    """A compressed model and the plan it was made by.

    Attributes:
        model: the smaller model.
        plan: what was done to each layer, with measured errors.
    """

    model: Any
    plan: Plan

    def report(self) -> str:
        """What was done to each layer and what it saves, as a table."""
        return str(self.plan)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes plan.json and weights.safetensors; see `rankfold.load`.

        Raises:
            RankfoldError: the folder cannot be written, or holds something else.
        """
        from rankfold.checkpoint import save

        save(self, Path(folder))


def plan(
    model: Any,
    policy: Policy,
    *,
    inputs: Any = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    overrides: Mapping[str, Policy] | None = None,
    placement: Placement = "balanced",
    seed: int = 0,
    adapter: Adapter | None = None,
) -> Plan:
    """What would be done to each layer of a model, and why.

    Args:
        model: a model of any framework with an adapter; it is not modified.
        policy: chooses the ranks.
        inputs: example inputs of one forward pass: a tensor, a tuple or list of positional or a
            mapping of keyword arguments. With them the plan counts MACs.
        methods: names of the allowed decompositions in order of preference; None for "svd",
            "tucker2", "spatial_svd" and "channel_svd".
        include: glob patterns of layer paths to consider; None for all.
        exclude: glob patterns of layer paths to leave alone.
        overrides: policies for some layers, by glob pattern; the first match counts.
        placement: "balanced" spreads the scale of a weight evenly over its chain, "classical"
            leaves it in one stage.
        seed: of all randomness.
        adapter: a fresh one, in place of the one that the installed plugins have for the model.

    Raises:
        RankfoldError: no adapter knows the model, a method is unknown, a pattern matches no layer,
            a rank is out of range, or the model fails on the inputs.
    """
    selection = Selection(policy, include, exclude, overrides)
    run = _Run(adapter or registry().adapter(model), model, inputs, methods, placement, seed)
    return run.plan_of([decision.layer for decision in run.decisions(selection)], policy)


def compress(
    model: Any,
    policy: Policy,
    *,
    inputs: Any = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    overrides: Mapping[str, Policy] | None = None,
    placement: Placement = "balanced",
    seed: int = 0,
    inplace: bool = False,
    adapter: Adapter | None = None,
) -> Compressed:
    """Plans and applies in one go, decomposing each layer once.

    Args:
        model: as for `plan`.
        policy: as for `plan`.
        inputs: as for `plan`.
        methods: as for `plan`.
        include: as for `plan`.
        exclude: as for `plan`.
        overrides: as for `plan`.
        placement: as for `plan`.
        seed: as for `plan`.
        inplace: modify the model itself instead of a copy.
        adapter: as for `plan`.

    Raises:
        RankfoldError: as for `plan`.
    """
    selection = Selection(policy, include, exclude, overrides)
    run = _Run(adapter or registry().adapter(model), model, inputs, methods, placement, seed)
    modules: dict[str, Any] = {}
    decided = [run.built(decision, modules) for decision in run.decisions(selection)]
    small = run.adapter.replace(model, modules, inplace=inplace)
    return Compressed(small, run.plan_of(decided, policy))


def apply(
    model: Any,
    plan: Plan,
    *,
    inputs: Any = None,
    inplace: bool = False,
    adapter: Adapter | None = None,
) -> Compressed:
    """Does to a model what a plan says.

    Args:
        model: the model the plan was made for, or one of the same structure with other weights.
        plan: from `plan`, from JSON or made by hand.
        inputs: example inputs, to count MACs anew; None keeps the plan's count of them.
        inplace: modify the model itself instead of a copy.
        adapter: as for `plan`.

    Returns:
        The compressed model and the plan with the errors measured on this model. A layer that must
        be left alone in this model (tied, for example) is, with that reason.

    Raises:
        RankfoldError: the plan names a layer that the model does not have or that has another
            shape, an unknown method, or a rank out of range; the model is then unchanged.
    """
    if not isinstance(plan, Plan):
        raise RankfoldError(f"plan: {type(plan).__name__}; give a rankfold.Plan")
    validate(plan)
    names = sorted({layer.method for layer in plan.replaced if layer.method is not None})
    methods = names or None
    run = _Run(
        adapter or registry().adapter(model), model, inputs, methods, plan.placement, plan.seed
    )
    check_planned(plan.layers, run.kinds)
    wanted = {layer.path: layer for layer in plan.layers}
    modules: dict[str, Any] = {}
    decided: list[LayerPlan] = []
    with progress("decomposing", len(run.kinds)) as advance:
        for path, kind in run.kinds.items():
            advance(path)
            given = wanted.get(path, LayerPlan(path=path, reason="not in the plan"))
            try:
                layer = run.layer((path,))
                if given.op != kind:  # which stands for a layer that could not be read
                    check_same(given, layer.op)
                reason = given.reason or ("" if given.method else "left alone by the plan")
                decision = decide(layer, Choice(given.method, given.ranks, reason))
            except Refused as refused:
                reason = given.reason if given.method is None else refused.reason
                decision = Decision(LayerPlan(path=path, op=kind, reason=reason or refused.reason))
            else:
                if inputs is None:
                    decision = decision.with_macs(_macs_of(given, decision.layer))
            decided.append(run.built(decision, modules))
    small = run.adapter.replace(model, modules, inplace=inplace)
    applied = msgspec.structs.replace(plan, layers=tuple(decided), size=run.size)
    return Compressed(small, applied)


def _macs_of(planned: LayerPlan, done: LayerPlan) -> tuple[int, int] | None:
    """The plan's count, where what is done is what was counted; none for a plan made by hand."""
    if planned.macs is None:
        return None
    if done.method is None:
        return planned.macs[0], planned.macs[0]
    same = planned.params is None or planned.params == done.params
    return planned.macs if same else None


def check_planned(planned: Iterable[LayerPlan], layers: Mapping[str, str]) -> None:
    """Sees to it that a model has every layer of a plan.

    Raises:
        RankfoldError: naming the first layer that it lacks.
    """
    for layer in planned:
        if layer.path not in layers:
            raise RankfoldError(
                f"layer {layer.path!r} of the plan is not in the model; the plan is for another"
            )


def check_same(planned: LayerPlan, op: Op) -> None:
    """Sees to it that a layer is the one that was planned.

    Raises:
        RankfoldError: naming the layer and what it is.
    """
    if planned.op and planned.op != describe(op):
        raise RankfoldError(
            f"layer {planned.path!r} is {describe(op)}, but the plan is for {planned.op}"
        )


class _Run:
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
        return Layer(paths, read, self._methods, extents, self._placement, self._seed)

    def decisions(self, selection: Selection) -> Iterator[Decision]:
        """One decision per layer: first on those that no policy sees, then policy by policy."""
        paths = {path: (path, *self.adapter.aliases(self._model, path)) for path in self.kinds}
        selection.check(list(paths.values()))
        seen: dict[int, tuple[Policy, list[Layer]]] = {}
        with progress("planning", len(self.kinds)) as advance:
            for path, kind in self.kinds.items():
                reason = selection.left_out(paths[path])
                try:
                    layer = self.layer(paths[path])
                except Refused as refused:
                    left = LayerPlan(path=path, op=kind, reason=reason or refused.reason)
                    advance(path)
                    yield Decision(left)
                    continue
                reason = reason or _unfit(layer.op)
                if reason:
                    advance(path)
                    yield decide(layer, Choice(None, reason=reason))
                else:
                    policy = selection.policy_of(paths[path])
                    seen.setdefault(id(policy), (policy, []))[1].append(layer)
                layer.release()
            for policy, layers in seen.values():
                choices = policy.allocate(layers)
                for layer in layers:
                    choice = next(choices, None)
                    if not isinstance(choice, Choice):
                        raise RankfoldError(
                            f"layer {layer.path!r}: policy {policy!r} gave {choice!r} for it; a "
                            "policy yields one rankfold.Choice per layer"
                        )
                    advance(layer.path)
                    yield decide(layer, choice)
                    layer.release()

    def built(self, decision: Decision, modules: dict[str, Any]) -> LayerPlan:
        """Builds and checks the module of a decision, into `modules`; the plan says if it fails."""
        rng = np.random.default_rng(self._seed)
        done, module = build(self.adapter, self._model, decision, rng)
        if module is not None:
            modules[done.path] = module
        registry().layer_done(done)
        return done

    def plan_of(self, decided: Iterable[LayerPlan], policy: Policy) -> Plan:
        """The plan, in the model's order."""
        done = {layer.path: layer for layer in decided}
        return Plan(
            layers=tuple(done[path] for path in self.kinds),
            policy=repr(policy),
            size=self.size,
            seed=self._seed,
            placement=self._placement,
        )

    def _read(self, path: str) -> Op:
        op = self.adapter.read(self._model, path)
        if self._trace is not None and path in self._trace.refusals:
            raise Refused(self._trace.refusals[path])
        return op


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
