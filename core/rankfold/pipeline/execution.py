"""From the choices of a policy to a smaller model: layers refitted, built, swapped and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np

from rankfold.adapters.base import DataAware
from rankfold.errors import RankfoldError
from rankfold.faults import of_adapter
from rankfold.layers.layer import Layer
from rankfold.layers.parallel import limited
from rankfold.ops import Chain, Embedding, Op
from rankfold.ops.ownership import copied
from rankfold.pipeline.allocation import named
from rankfold.pipeline.exchange import replaced
from rankfold.pipeline.refit import Refit
from rankfold.pipeline.replacement import Decision, decide
from rankfold.pipeline.session import Run
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.plugins.registry import registry
from rankfold.policies.base import Choice, Policy, judged
from rankfold.policies.budget import Budget
from rankfold.policies.budget_search import Attempt, fast_enough, search
from rankfold.policies.selection import Selection
from rankfold.progress import progress


def compressed(run: Run, selection: Selection, *, refit: bool, inplace: bool) -> tuple[Any, Plan]:
    """The smaller model and its plan, by whatever its policy wants tried out.

    Args:
        run: over the model's layers.
        selection: which policy decides on which layer.
        refit: whether layers are refitted where there is calibration data.
        inplace: change the model itself.
    """
    policy = selection.policy

    scored = isinstance(policy, Budget) and policy.drop is not None
    optional = inplace and not scored

    def attempt(trial: Policy, *, copy: bool = True) -> Attempt:
        chosen = replace(selection, policy=trial)
        return _attempt(run, chosen, refit=refit, copy=copy, optional=optional)

    while True:
        if isinstance(policy, Budget) and scored:
            resource = "macs" if run.traced else "params"
            best = search(policy, run.model, partial(fast_enough, attempt), resource)
        elif isinstance(policy, Budget) and policy.latency is not None:
            best = fast_enough(attempt, policy)
        else:
            best = attempt(policy, copy=not inplace or run.calibration is not None)
        model = best.model
        if inplace:
            model, left = replaced(run.adapter, run.model, best.modules, inplace=True)
            if left:
                run.spoilt.update(left)
                continue
        return model, msgspec.structs.replace(best.plan, policy=named(policy))


def _attempt(run: Run, selection: Selection, *, refit: bool, copy: bool, optional: bool) -> Attempt:
    """What replaces the layers, in a copy of the model and measured there if there is one.

    A policy that has a whole model to keep within limits decides anew, without the layer, when one
    of its replacements cannot be built; any policy does, when one cannot take the layer's place.

    Args:
        run: over the model's layers.
        selection: which policy decides on which layer.
        refit: whether layers are refitted where there is calibration data.
        copy: whether a copy is wanted.
        optional: whether to do without one where the model cannot be copied.
    """
    small: Any = None
    while True:
        notes: list[str] = []
        modules: dict[str, Any] = {}
        if run.calibration is None:
            found = run.decisions(selection, notes)
        else:
            found = _followed(run, selection, notes, refit=refit)
        decided, spoilt = [], {}
        for decision in found:
            done = run.built(decision, modules)
            decided.append(done)
            if decision.layer.method is not None and done.method is None:
                spoilt[done.path] = done.reason
        if spoilt and judged(selection.policy) == "model":
            run.spoilt.update(spoilt)
            continue
        if copy:
            try:
                small, left = replaced(run.adapter, run.model, modules, inplace=False)
            except RankfoldError as error:
                if not optional:
                    raise
                notes.append(f"the result is not measured: {error}")
                copy, left = False, {}
            if left:
                run.spoilt.update(left)
                continue
        break
    for done in decided:
        registry().layer_done(done)
    plan = run.plan_of(decided, selection.policy, notes)
    if not copy:
        return Attempt(None, plan, modules)
    loss = latency = None
    if isinstance(run.adapter, DataAware):
        if run.predicted is not None:
            before, after = run.adapter.model_seconds([run.model, small], run.inputs)
            latency = after / before
        if run.calibration is not None:
            loss = _divergence(run, run.adapter, small)
    return Attempt(small, msgspec.structs.replace(plan, loss=loss, latency=latency), modules)


def _followed(
    run: Run, selection: Selection, notes: list[str], *, refit: bool
) -> Iterator[Decision]:
    """Decisions made while the model runs on the calibration data."""
    assert run.calibration is not None
    assert isinstance(run.adapter, DataAware)
    chosen: dict[str, tuple[Layer, Choice]] = {}
    ops: dict[str, Op] = {}
    for item in run.choices(selection, notes):
        if isinstance(item, LayerPlan):
            yield Decision(item)
            continue
        layer, choice = item
        left_out = choice.method is None and bool(
            selection.left_out(layer.paths) or run.unfit(layer)
        )
        if left_out or (choice.method is None and isinstance(layer.op, Embedding)):
            yield decide(layer, choice)
        else:
            chosen[layer.path] = item
            ops[layer.path] = layer.op
        layer.release()
    visitor = Refit(chosen, ops, sequential=refit, seed=run.seed)
    with progress("refitting" if refit else "measuring", len(chosen)) as advance:

        def visit(path: str, fit: Any, held: Any, groups: Sequence[int] | None = None, /) -> Chain:
            if not visitor.knows(path):
                advance(path)
            with limited(run.threads):
                chain = visitor.visit(path, fit, held, groups)
            return chain if chain[0] is ops[path] else tuple(map(copied, chain))

        with of_adapter(run.adapter):
            errors = run.adapter.follow(
                run.model,
                run.calibration,
                ops,
                visit,
                sequential=refit,
                rng=np.random.default_rng(run.seed),
            )
    for path, item in chosen.items():
        with limited(run.threads):
            decision = visitor.decision(path) if visitor.knows(path) else decide(*item)
        if path in errors and decision.chain is not None:
            measured = msgspec.structs.replace(decision.layer, measured=errors[path])
            decision = Decision(measured, decision.op, decision.chain)
        yield decision


def _divergence(run: Run, adapter: DataAware, small: Any) -> tuple[float, float]:
    assert run.calibration is not None
    try:
        return adapter.divergence(run.model, small, run.calibration.held_out())
    except RankfoldError:  # a model that takes batches of one size only
        return adapter.divergence(run.model, small, run.calibration)
