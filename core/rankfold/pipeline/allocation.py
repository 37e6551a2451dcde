"""Stage 4 of a call: the choices of the policies, carried out layer by layer.

A layer's choice is carried out as soon as it is known, while its spectrum is at hand: so one layer
at a time is in memory. A policy decides on many layers, so its fault ends the call.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from rankfold.adapters.output_layers import output_layers
from rankfold.console import some
from rankfold.errors import Infeasible, RankfoldError, Refused
from rankfold.faults import contained, is_ours, shown
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.layers.parallel import each
from rankfold.ops import Cost
from rankfold.pipeline.calibrate import Calibrated
from rankfold.pipeline.model_layers import ModelLayers
from rankfold.pipeline.session import Session
from rankfold.plan.plan import LayerPlan
from rankfold.plan.tradeoff import Tradeoff
from rankfold.policies.base import Choice, Policy
from rankfold.policies.selection import Selection
from rankfold.policies.validation import CheckedPolicy, checked_policy
from rankfold.progress import progress
from rankfold.storage.wrapper_prefixes import wrapper_names

T = TypeVar("T")
# Letters of a policy's repr in a plan; `Ranks` may name a pattern for every layer.
_LONGEST = 10_000
_NAMED = 3
"""Layers that an error of a budget names among those that no policy can be asked about."""


@dataclass(frozen=True, eq=False)
class Task:
    """The question to the policies: which layers of which model.

    Attributes:
        session: of the model.
        calibrated: what is known of its data.
        layers: of the model.
        paths: of each layer.
        selection: which policy decides on which layer.
        barred: by path, why a replacement could not be built or put in place before.
    """

    session: Session
    calibrated: Calibrated
    layers: ModelLayers
    paths: Mapping[str, tuple[str, ...]]
    selection: Selection
    barred: Mapping[str, str]

    def left_out(self, layer: Layer) -> str:
        """Return why no policy is asked about a layer; "" where one is."""
        return self.selection.left_out(layer.paths) or self.unfit(layer)

    def unfit(self, layer: Layer) -> str:
        """Return why a layer cannot be decomposed, whoever is asked; "" where it can."""
        if layer.path in self.barred:
            return self.barred[layer.path]
        if self.calibrated.moments is not None and not layer.has_moments:
            return "it has no moments: it is not run on the calibration data as a layer of its own"
        return self.layers.unfit.get(layer.path, "")


@dataclass(frozen=True, eq=False)
class Allocated(Generic[T]):
    """The choices of all policies, carried out.

    Attributes:
        settled: the plans of the layers that could not be read.
        results: by path, what carrying out a choice gave; in the order of the choices.
        notes: what the policies say of the whole.
        predicted_latency: the time of a pass as a share of the original's, where it is limited.
        tradeoff: cost against loss as the policy of the selection saw it; None where it did not.
    """

    settled: Mapping[str, LayerPlan]
    results: Mapping[str, T]
    notes: tuple[str, ...]
    predicted_latency: float | None
    tradeoff: Tradeoff | None = None


def allocate(task: Task, carry_out: Callable[[Layer, Choice], T]) -> Allocated[T]:
    """Ask the policies about every layer and carry out each choice as soon as it is known.

    The policy of the selection comes last, so that a limit on the whole model counts what its
    overrides have chosen.

    Args:
        task: what they are asked.
        carry_out: called once for each layer that can be read, with its choice.

    Raises:
        RankfoldError: a policy fails, or cannot keep its limits.
    """
    session, layers = task.session, task.layers
    checked = {id(policy): checked_policy(policy) for policy in task.selection.policies}
    settled = {path: _settled(task, path, reason) for path, reason in layers.refusals.items()}
    results: dict[str, T] = {}
    notes: list[str] = []
    # Parameters of layers that could not be read count as those outside of layers, in the model's
    # size.
    costs = {path: Cost(0, (plan.macs or (0, 0))[0]) for path, plan in settled.items()}
    costs |= {path: layer.cost(layer.costs.outline) for path, layer in layers.layers.items()}
    predicted: float | None = None
    curve: Tradeoff | None = None
    with progress("planning", len(session.layer_classes)) as advance:

        def done(layer: Layer, choice: Choice) -> None:
            advance(layer.path)
            results[layer.path] = carry_out(layer, choice)
            layer.release()

        for path in settled:
            advance(path)
        decided = dict(costs)
        for policy, members in _groups(task, checked, done):
            group = _group(task, members, costs, decided)
            try:
                answer = _ask(policy, group)
            except Infeasible as error:
                raise Infeasible(f"{error}{_unavailable(settled)}", error.factor) from error
            pairs = answer.pairs
            # A policy of single layers decomposes as it judges, on the executor already. One of the
            # whole model has its choices all at once, and each is then worth a job. With a paired
            # run layers are decomposed in its course, one after the other.
            paired = task.calibrated.batches is not None
            if group.executor is not None and policy.judges == "model" and not paired:
                pairs = _decomposed_there(group, pairs)
            # Lazily: a layer is carried out while its spectrum is at hand, before the policy goes
            # on to the next.
            for layer, choice in pairs:
                if choice.method in layer.methods:
                    decided[layer.path] = layer.template_cost(choice.method, choice.ranks)
                done(layer, choice)
            notes.extend(answer.notes)
            if answer.seconds is not None:
                predicted = answer.seconds[1] / answer.seconds[0]
            curve = answer.tradeoff  # that of the selection comes last
    return Allocated(settled, results, tuple(notes), predicted, curve)


def _unavailable(settled: Mapping[str, LayerPlan]) -> str:
    """Name the layers that no policy can be asked about, and why; "" for none."""
    if not settled:
        return ""
    reasons = [f"{path!r} ({plan.reason})" for path, plan in settled.items()]
    return f"; not among these layers are {some(reasons, _NAMED)}"


def named(policy: Policy) -> str:
    """Return the text by which plans record a policy."""
    return shown(policy, _LONGEST)


def _group(
    task: Task, members: Sequence[Layer], costs: Mapping[str, Cost], decided: Mapping[str, Cost]
) -> LayerGroup:
    """Return layers with what surrounds them, at the costs that were decided on so far."""
    session = task.session
    cost_of_group = sum((decided[layer.path] for layer in members), Cost(0, 0))
    # The group's own layers are taken out of the cost around it, for it is about to choose theirs.
    return LayerGroup(
        tuple(members),
        _model_cost(session.size, costs, decided).less(cost_of_group),
        _model_cost(session.size, costs, costs),
        session.model_seconds,
        session.settings.executor,
    )


def _groups(
    task: Task, checked: Mapping[int, CheckedPolicy], done: Callable[[Layer, Choice], None]
) -> list[tuple[CheckedPolicy, list[Layer]]]:
    """Return each policy with the layers that it is asked about, that of the selection last.

    Args:
        task: what they are asked.
        checked: the policies, by the identity of each.
        done: called with each layer that no policy is asked about.
    """
    session, selection = task.session, task.selection
    main = checked[id(selection.policy)]
    paths = list(session.layer_classes)
    outputs = output_layers(session.can, session.model, session.trace, paths, wrapper_names())
    asked: list[tuple[Layer, CheckedPolicy, str]] = []
    has_inner = False  # whether there is a layer to compress besides those that give the outputs
    # In two passes: whether layers that give the outputs are spared depends on whether there is any
    # other layer to compress, which is known only when all have been seen.
    for path, layer in task.layers.layers.items():
        unfit = task.unfit(layer)
        has_inner |= not unfit and bool(layer.methods) and path not in outputs
        reason = selection.left_out(layer.paths) or unfit
        if reason:
            done(layer, Choice(None, reason=reason))
        else:
            policy = checked[id(selection.policy_of(layer.paths))]
            # A policy of the whole model weighs such a layer with all others. One that judges by
            # the layer alone cannot see what its rank does, unless the user has named it.
            spared = policy.judges == "layer" and not selection.names(layer.paths)
            asked.append((layer, policy, outputs.get(path, "") if spared else ""))
    groups: dict[int, tuple[CheckedPolicy, list[Layer]]] = {}
    for layer, policy, reason in asked:
        if reason and has_inner:  # a model of nothing else was handed over for its outputs
            done(layer, Choice(None, reason=reason))
        else:
            groups.setdefault(id(policy.policy), (policy, []))[1].append(layer)
    if main.judges == "model":  # its limits hold where nothing is left
        groups.setdefault(id(main.policy), (main, []))
    return sorted(groups.values(), key=lambda group: group[0].policy is main.policy)


def _settled(task: Task, path: str, refusal: str) -> LayerPlan:
    session = task.session
    unknown = session.trace is None or session.uncounted(path)
    macs = None if session.trace is None or unknown else session.trace.macs.get(path)
    return LayerPlan(
        path=path,
        op=session.layer_classes[path],
        reason=task.selection.left_out(task.paths[path]) or refusal,
        macs=None if macs is None else (macs, macs),
    )


def _model_cost(size: int, original: Mapping[str, Cost], now: Mapping[str, Cost]) -> Cost:
    """Return the cost of the model with its layers at their present costs."""
    known = sum(now.values(), Cost(0, 0))
    # Not below 0: the adapter may count a tied weight once, and each of its layers counts it.
    others = size - sum(cost.params for cost in original.values())
    return Cost(known.params + max(0, others), known.macs)


@dataclass(frozen=True, eq=False)
class _Answer:
    pairs: Iterable[tuple[Layer, Choice]]
    notes: tuple[str, ...] = ()
    seconds: tuple[float, float] | None = None
    tradeoff: Tradeoff | None = None


def _ask(checked: CheckedPolicy, group: LayerGroup) -> _Answer:
    """Return the choices of a policy, lazily where it judges one layer at a time.

    Raises:
        RankfoldError: the policy fails, or gives something else than one choice per layer.
    """
    policy = checked.policy
    who = f"policy {shown(policy)}"
    with contained(who, RankfoldError):
        if checked.of_model is None:
            return _Answer(_pairs(policy, group, iter(policy.allocate(group))))
        allocation = checked.of_model.allocate_model(group)
        choices = iter(allocation.choices)
        if isinstance(allocation.notes, str):
            raise TypeError("the notes of an Allocation are a tuple of texts")
        # Plain strings: a subclass could have methods of its own, which would run wherever it is
        # shown.
        notes = tuple(map(str.__str__, allocation.notes))
        seconds = allocation.seconds
        if seconds is not None:
            before, after = map(float, seconds)
            if not (0.0 < before < math.inf and 0.0 <= after / before < math.inf):
                raise ValueError(f"seconds {before}, {after}: two finite times, the first above 0")
            seconds = (before, after)
        curve = allocation.tradeoff
        if curve is not None and (not isinstance(curve, Tradeoff) or curve.why_not):
            raise ValueError(f"tradeoff {shown(curve)}; give a Tradeoff of finite numbers")
    return _Answer(_pairs(policy, group, choices), notes, seconds, curve)


def _pairs(
    policy: Policy, group: LayerGroup, choices: Iterator[Choice]
) -> Iterator[tuple[Layer, Choice]]:
    who = f"policy {shown(policy)}"
    if not group:  # its limits hold where nothing is left to choose
        with contained(who, RankfoldError):
            next(choices, None)
    for layer in group:
        with contained(who, RankfoldError):
            choice = _checked(next(choices, None), f"layer {layer.path!r}: {who}")
        if not is_ours(policy) and not isinstance(layer.op.weight, np.ndarray):
            layer.release()  # what can be written to may have been: it is read anew
        yield layer, choice
    with contained(who, RankfoldError):  # where it may still do something
        getattr(choices, "close", lambda: None)()


def _decomposed_there(
    group: LayerGroup, pairs: Iterable[tuple[Layer, Choice]]
) -> Iterator[tuple[Layer, Choice]]:
    """Yield the choices for all layers, each of them decomposed on the executor beforehand."""
    chosen = list(pairs)
    tried = each(group, _tried, [choice for _, choice in chosen])
    for pair, _ in zip(chosen, tried, strict=True):
        yield pair


def _tried(layer: Layer, choice: Choice) -> None:
    """Decompose a layer for the sake of its cache; an error shows again when it is carried out."""
    if choice.method in layer.methods:
        with suppress(RankfoldError, Refused):
            layer.candidate(choice.method, choice.ranks)


def _checked(choice: object, who: str) -> Choice:
    if not isinstance(choice, Choice):
        raise RankfoldError(
            f"{who} gave {shown(choice)} for it; a policy yields one rankfold.Choice per layer"
        )
    if not isinstance(choice.method, str | None) or not isinstance(choice.reason, str):
        raise RankfoldError(
            f"{who} gave {shown(choice)} for it; its method and its reason are texts"
        )
    reason = choice.reason
    if choice.method is None and not reason:
        reason = "left alone by its policy, without a reason"
    # `index` takes NumPy's integers and refuses floats; the ranks of a plan are written as JSON.
    return Choice(choice.method, tuple(map(operator.index, choice.ranks)), reason)
