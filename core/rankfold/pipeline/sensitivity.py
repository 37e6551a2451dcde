"""Fall of a score when each layer alone is compressed: a copy of the model for each try."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rankfold.adapters.base import Adapter
from rankfold.calibration.batches import Loss
from rankfold.decompose.base import RankTuple
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.layer import Layer
from rankfold.ops import Cost
from rankfold.pipeline.allocation import Task
from rankfold.pipeline.calibrate import calibrate
from rankfold.pipeline.exchange import replaced
from rankfold.pipeline.model_layers import layer_paths, read_layers
from rankfold.pipeline.replacement import build, decide
from rankfold.pipeline.session import Session, open_session, settings_of
from rankfold.plan.plan import LayerPlan
from rankfold.plan.sensitivities import LayerScore, Sensitivities
from rankfold.plugins.model_lock import exclusive
from rankfold.policies.base import Choice, check_share
from rankfold.policies.budget_curve import Resource
from rankfold.policies.budget_search import score_of
from rankfold.policies.ratio import Ratio
from rankfold.policies.selection import Selection
from rankfold.progress import progress
from rankfold.storage.model_files import opened
from rankfold.storage.moments_file import Moments

SHARES = (0.5, 0.25, 0.1)
"""Of a layer's cost, at which it is tried unless others are asked for."""


@exclusive("model")
def sensitivity(
    model: Any,
    *,
    evaluate: Callable[[Any], float],
    shares: Sequence[float] = SHARES,
    inputs: Any = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    calibration: Any = None,
    loss: Loss | None = None,
    moments: Moments | None = None,
    adapter: Adapter | None = None,
) -> Sensitivities:
    """Measure how the score of a model falls when each layer alone is compressed.

    Each layer is replaced in a copy of its own by what loses least at each of the shares of its
    cost, without a refit, and the copy is scored.

    Args:
        model: the model, which is not modified, or the path of a file with one.
        evaluate: gives the score of a model, higher for better ones.
        shares: of a layer's cost, in multiply-accumulates where there are example inputs and in
            parameters elsewhere, that is left to it.
        inputs: as for `plan`.
        methods: as for `plan`.
        include: as for `plan`.
        exclude: as for `plan`.
        seed: as for `plan`.
        calibration: as for `plan`; moments are gathered once for all layers.
        loss: as for `plan`.
        moments: as for `plan`.
        adapter: as for `plan`.

    Returns:
        A score for each layer and share, with the predicted error beside it.

    Raises:
        RankfoldError: as `plan`, a share is out of range, or `evaluate` fails or gives no finite
            number.

    Example:
        >>> model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> x = torch.randn(200, 48)
        >>> goal = model(x)
        >>> def score(model):
        ...     return -float((model(x) - goal).square().mean().detach())
        >>> result = rf.sensitivity(model, evaluate=score, shares=(0.5, 0.1))
        >>> [(trial.path, trial.share <= 0.5, trial.drop > 0) for trial in result.of("0")]
        [('0', True, True), ('0', True, True)]
    """
    if not isinstance(shares, Iterable):
        raise RankfoldError(f"sensitivity: shares {shares!r}; give several, as in ({shares!r},)")
    for share in shares:
        check_share("sensitivity", share)
    selection = Selection(Ratio(1.0), include, exclude)
    settings = settings_of(methods, "balanced", seed)
    session = open_session(opened(model), inputs, settings, adapter)
    paths = layer_paths(session)
    selection.check(list(paths.values()))
    calibrated = calibrate(session, calibration, loss, moments)
    layers = read_layers(session, calibrated, paths)
    counted = session.trace is not None and any(
        layer.costs.before.macs for layer in layers.layers.values()
    )
    resource: Resource = "macs" if counted else "params"
    total = sum(_count(layer.costs.before, resource) for layer in layers.layers.values())
    # A copy, as the others are: a score may be taken in ways that change the model.
    original = score_of(
        evaluate, replaced(session.can, session.model, {}, inplace=False)[0], "sensitivity"
    )
    left_out = dict(layers.refusals)
    scores: list[LayerScore] = []
    task = Task(session, calibrated, layers, paths, selection, {})
    with progress("scoring", len(layers.layers)) as advance:
        for path, layer in layers.layers.items():
            advance(path)
            reason, before = task.left_out(layer), _count(layer.costs.before, resource)
            if not reason:
                try:
                    for plan, cost, small in _tried(session, layer, shares, resource):
                        score = score_of(evaluate, small, "sensitivity")
                        left = _count(cost, resource)
                        scores.append(_scored(plan, before, left, total, original, score))
                except Refused as refused:
                    reason = refused.reason
            if reason:
                left_out[path] = reason
            layer.release()
    return Sensitivities(tuple(scores), original, resource, left_out)


def _tried(
    session: Session, layer: Layer, shares: Sequence[float], resource: Resource
) -> Iterator[tuple[LayerPlan, Cost, Any]]:
    """Yield plans of a layer at shares of its cost, with costs and models that have it replaced.

    Raises:
        Refused: nothing is cheaper, or its replacement cannot be built or put in place.
    """
    before = _count(layer.costs.before, resource)
    offers = layer.offers()
    known: set[tuple[str, RankTuple]] = set()
    for share in sorted(shares, reverse=True):
        within = [o for o in offers if _count(o.cost, resource) <= share * before]
        best = min(within, key=lambda offer: offer.loss, default=None)
        if best is None or (best.method, best.ranks) in known:
            continue
        known.add((best.method, best.ranks))
        decision = decide(layer, Choice(best.method, best.ranks))
        rng = np.random.default_rng(session.settings.seed)
        plan, module = build(session.can, session.model, decision, rng)
        if module is None:
            raise Refused(plan.reason)
        small, stale = replaced(session.can, session.model, {layer.path: module}, inplace=False)
        if stale:
            raise Refused("; ".join(stale.values()))
        yield plan, best.cost, small
    if not known:
        raise Refused("nothing cheaper at these shares of its cost")


def _scored(
    plan: LayerPlan, before: int, after: int, total: int, original: float, score: float
) -> LayerScore:
    error = plan.error if plan.predicted is None else plan.predicted
    assert plan.method is not None
    assert error is not None
    return LayerScore(
        path=plan.path,
        method=plan.method,
        ranks=plan.ranks,
        share=after / max(1, before),
        saved=(before - after) / max(1, total),
        error=error,
        score=score,
        drop=original - score,
    )


def _count(cost: Cost, resource: Resource) -> int:
    return cost.macs if resource == "macs" else cost.params
