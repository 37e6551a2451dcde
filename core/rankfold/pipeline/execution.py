"""Turn the choices of a policy into a smaller model: refit, build, exchange and measure layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import numpy as np

from rankfold.calibration.losses import estranged
from rankfold.errors import RankfoldError
from rankfold.faults import contained, is_ours, shown
from rankfold.pipeline.allocation import Allocated, Task, allocate, named
from rankfold.pipeline.calibrate import Calibrated
from rankfold.pipeline.call_text import call_text, command_text
from rankfold.pipeline.distillation import distilled, distilled_plan
from rankfold.pipeline.exchange import replaced
from rankfold.pipeline.refit import is_settled, refitted
from rankfold.pipeline.replacement import Decision, build, decide
from rankfold.pipeline.session import Session
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.plugins.registry import registry
from rankfold.policies.base import Outcome, Policy, SearchesModels
from rankfold.policies.validation import CheckedPolicy, checked_policy

_NAMED = 3
"""Layers that a note names; there may be a pair for each of a hundred blocks."""


@dataclass(frozen=True, eq=False)
class Replacement:
    """The outcome of one layer's decision.

    Attributes:
        wanted: whether it was to be replaced.
        plan: of the layer; with the reason where it could not be.
        module: in its place; None where it stays.
    """

    wanted: bool
    plan: LayerPlan
    module: Any


@dataclass(frozen=True, eq=False)
class _Attempt:
    outcome: Outcome
    barred: Mapping[str, str]


def plan_only(task: Task) -> Plan:
    """Plan: the choices of the policies with errors and costs, without building anything."""
    allocated = allocate(task, lambda layer, choice: decide(layer, choice).layer)
    return _plan(task, allocated, allocated.results)


def run_policy(task: Task, *, refit: bool, inplace: bool) -> tuple[Any, Plan]:
    """Compress a model, trying out as many models as its policy asks for.

    Args:
        task: what the policies are asked.
        refit: whether layers are refitted where there is calibration data.
        inplace: change the model itself.

    Raises:
        RankfoldError: a policy fails, no model is good enough, or the model cannot be copied.
    """
    session, policy = task.session, checked_policy(task.selection.policy)
    _check_distillation(task, policy, inplace=inplace)
    # A copy is wanted to be returned, to be measured, or to be evaluated; the first two can be done
    # without where the model itself is to be changed and cannot be copied.
    copy = not inplace or task.calibrated.batches is not None or policy.looks_at != "plans"
    optional = inplace and policy.looks_at != "models"
    barred = task.barred
    # Tells this call's outcomes from any other object that a search may give back, such as an
    # outcome of an earlier call, whose modules belong to another model.
    token = object()

    def attempt(trial: Policy) -> Outcome:
        nonlocal barred
        selection = replace(task.selection, policy=trial)
        done = _attempt(
            replace(task, selection=selection, barred=barred), refit, copy=copy, optional=optional
        )
        # What could not take its place in one trial cannot in the next: it is not tried again and
        # again.
        barred = done.barred
        outcome = done.outcome
        if policy.distil_steps:
            outcome = _distilled(task, outcome, policy.distil_steps)
        return replace(outcome, token=token)

    while True:
        if policy.searching is None:
            best = attempt(policy.policy)
        else:
            resource: Literal["params", "macs"] = "params" if session.trace is None else "macs"
            original = session.model
            if policy.looks_at == "models":  # whose score may be taken in ways that change it
                original, _ = replaced(session.can, original, {}, inplace=False)
            kept = _searched(policy, policy.searching, original, attempt, resource)
            if not isinstance(kept, Outcome) or kept.token is not token:
                raise RankfoldError(
                    f"policy {shown(policy.policy)}: search gave {shown(kept)}; give back one of "
                    "the outcomes of attempt"
                )
            best = kept
        model = best.model
        # The trials were made on copies. The model itself is changed once, at the end; what it
        # alone shows, such as a layer that somebody outside holds, bars that layer and the policy
        # is asked anew.
        if inplace:
            model, stale = replaced(session.can, session.model, best.modules, inplace=True)
            if stale:
                barred = {**barred, **stale}
                continue
        name, (call, command) = named(policy.policy), _calls(task, refit=refit)
        return model, msgspec.structs.replace(best.plan, policy=name, call=call, command=command)


def _check_distillation(task: Task, policy: CheckedPolicy, *, inplace: bool) -> None:
    """Check that the models that a policy tries out can be trained, if it wants them to be.

    Raises:
        RankfoldError: there is no calibration data, or the model itself is to be changed, in which
            only the layers that are replaced can be exchanged.
    """
    if not policy.distil_steps:
        return
    if task.calibrated.batches is None:
        raise RankfoldError(
            f"policy {shown(policy.policy)}: distil_steps= needs calibration data; pass "
            "calibration=, at least 16 examples"
        )
    if inplace:
        raise RankfoldError(
            f"policy {shown(policy.policy)}: distil_steps= trains a copy; leave inplace= out"
        )


def _distilled(task: Task, outcome: Outcome, steps: int) -> Outcome:
    """Return a model that was tried out, trained on the calibration examples."""
    session, batches = task.session, task.calibrated.batches
    assert batches is not None
    trained = distilled(
        session.can,
        outcome.model,
        session.model,
        batches,
        steps=steps,
        seed=session.settings.seed,
    )
    plan = distilled_plan(outcome.plan, batches, trained)
    return replace(outcome, model=trained.model, plan=plan)


def _searched(
    checked: CheckedPolicy,
    searching: SearchesModels,
    model: Any,
    attempt: Callable[[Policy], Outcome],
    resource: Literal["params", "macs"],
) -> object:
    """Return what a policy's search gives; an error of a foreign policy is told as its fault."""
    # What rankfold's own search raises keeps its class and its trace; only a foreign one's is
    # retold.
    if is_ours(checked.policy):
        return searching.search(model, attempt, resource)
    with contained(f"policy {shown(checked.policy)}", RankfoldError):
        return searching.search(model, attempt, resource)


def _attempt(task: Task, refit: bool, *, copy: bool, optional: bool) -> _Attempt:
    """Build the replacements, put them into a copy of the model and measure it.

    A policy that has a whole model to keep within limits decides anew, without the layer, when one
    of its replacements cannot be built; any policy does, when one cannot take the layer's place.

    Args:
        task: what the policies are asked.
        refit: whether layers are refitted where there is calibration data.
        copy: whether a copy is wanted.
        optional: whether to do without one where the model cannot be copied.
    """
    session = task.session
    judges = checked_policy(task.selection.policy).judges
    while True:
        allocated, replacements = _replacements(task, refit)
        modules = {
            path: done.module for path, done in replacements.items() if done.module is not None
        }
        failed = {
            path: done.plan.reason
            for path, done in replacements.items()
            if done.wanted and done.plan.method is None
        }
        # A policy of the whole model has a budget to fill anew. And after a paired run the layers
        # behind were refitted to a replacement that is not there: that run is worth nothing.
        if failed and (judges == "model" or (refit and task.calibrated.batches is not None)):
            task = replace(task, barred={**task.barred, **failed})
            continue
        notes: tuple[str, ...] = ()
        small = None
        if copy:
            try:
                small, stale = replaced(session.can, session.model, modules, inplace=False)
            except RankfoldError as error:
                if not optional:
                    raise
                notes = (f"the result is not measured: {error}",)
                copy, stale = False, {}
            if stale:
                task = replace(task, barred={**task.barred, **stale})
                continue
        break
    done = {path: replacement.plan for path, replacement in replacements.items()}
    plan = _plan(task, allocated, done, notes, refit=refit)
    # Observers hear of each layer once, when it is certain; rounds that were given up are not told.
    for layer in plan.layers:
        registry().layer_done(layer)
    if copy:
        latency = None
        if allocated.predicted_latency is not None:
            latency = _latency(session, small)
        plan = _judged(plan, session, task.calibrated, small)
        plan = msgspec.structs.replace(plan, latency=latency)
    return _Attempt(Outcome(small, plan, modules), task.barred)


def _replacements(task: Task, refit: bool) -> tuple[Allocated[Any], Mapping[str, Replacement]]:
    # Without batches each layer is decomposed, built and forgotten in turn. With them all choices
    # have to be known before the paired run, which meets the layers in the order of execution.
    if task.calibrated.batches is None:
        built = allocate(task, lambda layer, choice: _built(task.session, decide(layer, choice)))
        return built, built.results
    chosen = allocate(
        task,
        lambda layer, choice: decide(layer, choice) if is_settled(task, layer, choice) else choice,
    )
    return chosen, {
        decision.layer.path: _built(task.session, decision)
        for decision in refitted(task, chosen.results, sequential=refit)
    }


def _built(session: Session, decision: Decision) -> Replacement:
    # A new generator for each layer: its check does not depend on how many were checked before it.
    rng = np.random.default_rng(session.settings.seed)
    plan, module = build(session.can, session.model, decision, rng)
    return Replacement(decision.layer.method is not None, plan, module)


def _plan(
    task: Task,
    allocated: Allocated[Any],
    done: Mapping[str, LayerPlan],
    notes: tuple[str, ...] = (),
    *,
    refit: bool = True,
) -> Plan:
    """Return the plan, in the model's order."""
    session = task.session
    layers = {**allocated.settled, **done}
    call, command = _calls(task, refit=refit)
    return Plan(
        layers=tuple(layers[path] for path in session.layer_classes),
        policy=named(task.selection.policy),
        size=session.size,
        seed=session.settings.seed,
        placement=session.settings.placement,
        predicted_latency=allocated.predicted_latency,
        call=call,
        command=command,
        tradeoff=allocated.tradeoff,
        notes=(
            *task.calibrated.remarks,
            *allocated.notes,
            *notes,
            *_uncounted(session, layers),
            *_nothing_replaced(task, layers),
        ),
    )


def _calls(task: Task, *, refit: bool) -> tuple[str, str]:
    """Return the call that makes a plan, in Python and on the command line."""
    # Without data there is nothing to refit to, and the argument decides nothing.
    refits = refit or task.calibrated.batches is None
    selection, settings = task.selection, task.session.settings
    return (
        call_text(selection, settings, refit=refits),
        command_text(selection, settings, refit=refits),
    )


def _nothing_replaced(task: Task, layers: Mapping[str, LayerPlan]) -> tuple[str, ...]:
    """Say what to try where a policy that judges by single layers leaves all of them."""
    judges = checked_policy(task.selection.policy).judges
    if judges != "layer" or not layers or any(layer.method for layer in layers.values()):
        return ()
    reasons = Counter(layers[path].reason for path in task.session.layer_classes)
    (reason, count), *_ = reasons.most_common(1)
    return (
        f"no layer is replaced, {count} of {len(layers)} since {reason!r}; Budget(params=0.5) "
        "makes a model smaller whatever its weights are like, and says what that loses",
    )


def _uncounted(session: Session, layers: Mapping[str, LayerPlan]) -> tuple[str, ...]:
    """Name the layers at work that no count of MACs, and so no limit on them, takes in."""
    paths = [p for p in session.layer_classes if session.uncounted(p) and layers[p].macs is None]
    if not paths:
        return ()
    named = ", ".join(repr(path) for path in paths[:_NAMED])
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return (f"MACs are those of the other layers: not counted are those of {named}{more}",)


def _latency(session: Session, small: Any) -> float | None:
    if session.can.times is None:
        return None
    before, after = session.can.times.model_seconds([session.model, small], session.inputs)
    return after / before


def _judged(plan: Plan, session: Session, calibrated: Calibrated, small: Any) -> Plan:
    """Return a plan with the loss on held-out examples, and what that says of the result."""
    batches, calibrates = calibrated.batches, session.can.calibrates
    if batches is None or calibrates is None:
        return plan
    try:
        loss = calibrates.divergence(session.model, small, batches.held_out())
    except RankfoldError:  # a model that takes batches of one size only
        loss = calibrates.divergence(session.model, small, batches)
    if not all(map(math.isfinite, loss)):
        first, second = loss
        note = f"the loss on held-out examples is {first:g}, of the result {second:g}: no numbers"
        return msgspec.structs.replace(plan, notes=(*plan.notes, note))
    remark = estranged(batches, loss[1])
    notes = plan.notes if remark is None else (*plan.notes, remark)
    return msgspec.structs.replace(plan, loss=loss, notes=notes)
