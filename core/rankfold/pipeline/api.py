"""plan, apply, compress: the only place where the steps are put in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import msgspec
import numpy as np

from rankfold.adapters.base import Adapter, ReadsLayers
from rankfold.calibration.batches import Loss
from rankfold.calibration.moments import FEWEST
from rankfold.decompose.base import Placement
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.settings import Settings
from rankfold.pipeline.allocation import Task
from rankfold.pipeline.calibrate import Calibrated, calibrate
from rankfold.pipeline.exchange import replaced_where_possible
from rankfold.pipeline.execution import plan_only, run_policy
from rankfold.pipeline.model_layers import ModelLayers, layer_paths, read_layers
from rankfold.pipeline.replacement import Decision, build, decide, undone
from rankfold.pipeline.result import Compressed
from rankfold.pipeline.session import Session, open_session, settings_of
from rankfold.plan.plan import LayerPlan, Plan, check_planned, check_same, validate
from rankfold.plugins.model_lock import exclusive
from rankfold.plugins.registry import registry
from rankfold.policies.base import Choice, Policy
from rankfold.policies.selection import Selection
from rankfold.policies.validation import checked_policy
from rankfold.progress import progress
from rankfold.storage.model_files import opened
from rankfold.storage.moments_file import Moments


@exclusive("model")
def plan(
    model: Any,
    policy: Policy | str,
    *,
    inputs: Any = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    overrides: Mapping[str, Policy | str] | None = None,
    placement: Placement = "balanced",
    seed: int = 0,
    calibration: Any = None,
    loss: Loss | None = None,
    moments: Moments | None = None,
    executor: Executor | None = None,
    adapter: ReadsLayers | None = None,
) -> Plan:
    """Plan what is to be done to each layer of a model, and say why.

    Args:
        model: a model of any framework with an adapter, or the path of a file that holds a whole
            one (.onnx); it is not modified.
        policy: chooses the ranks; as an object or as text, "energy:0.9" or
            "budget:macs=0.5,params=0.4".
        inputs: example inputs of one forward pass: a tensor, a tuple or list of positional or a
            mapping of keyword arguments. With them the plan counts MACs.
        methods: names of the allowed decompositions in order of preference; None for "svd",
            "tucker2", "spatial_svd" and "channel_svd", and, where the policy limits parameters or
            latency, for "svd_id", "tucker2_id" and "channel_svd_id".
        include: glob patterns of layer paths to consider; None for all.
        exclude: glob patterns of layer paths to leave alone.
        overrides: policies for some layers, objects or texts, by glob pattern; the first match
            counts.
        placement: "balanced" spreads the scale of a weight evenly over its chain, "classical"
            leaves it in one stage.
        seed: of all randomness.
        calibration: batches of inputs as the model meets them in use, as `inputs` or with labels
            behind them; a batch may be a tuple of which the first items are the inputs. With them
            errors are measured where they matter to the outputs.
        loss: what the outputs are judged by: "cross_entropy" (they are logits), "outputs" (any
            change of them counts, by its square; the default) or a function of (outputs, batch)
            that gives a scalar.
        moments: gathered before by `rankfold.gather`, in place of a pass over `calibration`.
        executor: any `concurrent.futures.Executor`, on which layers are ranked and decomposed, with
            the results of a run without it. Sequential refits go on one after the other.
        adapter: a fresh one, in place of the one that the installed plugins have for the model.

    Raises:
        RankfoldError: no adapter knows the model, a method is unknown, a pattern matches no layer,
            a rank is out of range, or the model fails on the inputs.

    Returns:
        The plan: for each layer method, ranks, error, cost before and after, and the reason.

    Example:
        >>> layer, head = nn.Linear(128, 256), nn.Linear(256, 10)  # weights (256, 128), (10, 256)
        >>> plan = rf.plan(nn.Sequential(layer, nn.ReLU(), head), rf.Ratio(0.25), exclude="2")
        >>> plan["0"].ranks, plan["0"].params
        ((32,), (33024, 12544))
        >>> plan["2"].reason
        "excluded by '2'"
    """
    selection = registry().selection(policy, include, exclude, overrides)
    settings = _settings(selection, methods, placement, seed, executor)
    session = open_session(opened(model), inputs, settings, adapter)
    return plan_only(_task(session, selection, calibration, loss, moments))


@exclusive("model")
def compress(  # noqa: D417 - the others are those of plan
    model: Any,
    policy: Policy | str,
    *,
    inputs: Any = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    overrides: Mapping[str, Policy | str] | None = None,
    placement: Placement = "balanced",
    seed: int = 0,
    calibration: Any = None,
    loss: Loss | None = None,
    moments: Moments | None = None,
    refit: bool = True,
    inplace: bool = False,
    executor: Executor | None = None,
    adapter: Adapter | None = None,
) -> Compressed:
    """Plan and apply in one go, with refits where there is calibration data.

    Args not listed here are those of `plan`.

    Args:
        model: the model.
        policy: chooses methods and ranks; an object or a text.
        refit: whether, with calibration data, every layer is refitted to the original's outputs on
            the inputs that the compressed layers before it give.
        inplace: modify the model itself instead of a copy.

    Returns:
        The compressed model and the plan, with measured errors.

    Raises:
        RankfoldError: as `plan`, or a replacement cannot be put in place.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3))
        >>> batches = torch.randn(64, 3, 12, 12).split(16)  # four of (16, 3, 12, 12)
        >>> budget, x = rf.Budget(macs=0.5), torch.randn(1, 3, 12, 12)
        >>> small = rf.compress(model, budget, inputs=x, calibration=batches)
        >>> small.model(x).shape
        torch.Size([1, 24, 8, 8])
        >>> before, after = small.plan.macs
        >>> after <= 0.5 * before
        True
    """
    selection = registry().selection(policy, include, exclude, overrides)
    settings = _settings(selection, methods, placement, seed, executor)
    session = open_session(opened(model), inputs, settings, adapter)
    task = _task(session, selection, calibration, loss, moments)
    small = Compressed(*run_policy(task, refit=refit, inplace=inplace))
    registry().model_done(small.model, small.plan)
    return small


@exclusive("model")
def gather(  # noqa: D417 - the others are those of plan
    model: Any,
    calibration: Any,
    *,
    inputs: Any = None,
    loss: Loss | None = None,
    seed: int = 0,
    adapter: Adapter | None = None,
) -> Moments:
    """Gather the moments of all layers on calibration data, for any number of plans.

    Args not listed here are those of `plan`.

    Args:
        model: the model.
        calibration: batches of inputs.
        inputs: example inputs; they tell what of a batch the inputs are.
        seed: draws labels, noise and the sample of positions.

    Returns:
        By path of each layer E[x xᵀ], E[x] and E[g gᵀ] of its inputs x and the gradients g at its
        output; to be passed as `moments=`, or saved to a file.

    Raises:
        RankfoldError: the calibration data or the loss does not fit the model, or there are fewer
            than 16 examples (tokens, where a model gives each token a prediction).

    Example:
        One pass, two plans:

        >>> model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> moments = rf.gather(model, torch.randn(64, 48).split(16))  # four of (16, 48)
        >>> moments["0"].inputs.shape, moments["0"].grads.shape  # groups first
        ((1, 48, 48), (1, 64, 64))
        >>> plans = [rf.plan(model, rf.Ratio(share), moments=moments) for share in (0.25, 0.5)]
        >>> [plan["0"].ranks for plan in plans]
        [(12,), (24,)]
    """
    session = open_session(opened(model), inputs, settings_of(None, "balanced", seed), adapter)
    gathered = calibrate(session, calibration, loss, None).moments
    if gathered is None:
        raise RankfoldError(f"calibration: too little; give at least {FEWEST} examples")
    return gathered


def _settings(
    selection: Selection,
    methods: Sequence[str] | None,
    placement: Placement,
    seed: int,
    executor: Executor | None,
) -> Settings:
    # The default methods are those of the main policy, for overrides, too.
    interpolative = checked_policy(selection.policy).allows_interpolation
    return settings_of(methods, placement, seed, executor, interpolative=interpolative)


def _task(
    session: Session,
    selection: Selection,
    calibration: Any,
    loss: Loss | None,
    moments: Moments | None,
) -> Task:
    paths = layer_paths(session)
    selection.check(list(paths.values()))
    calibrated = calibrate(session, calibration, loss, moments)
    layers = read_layers(session, calibrated, paths)
    return Task(session, calibrated, layers, paths, selection, {})


@exclusive("model")
def apply(
    model: Any,
    plan: Plan,
    *,
    inputs: Any = None,
    inplace: bool = False,
    adapter: Adapter | None = None,
) -> Compressed:
    """Do to a model what a plan says.

    Args:
        model: the model the plan was made for, or one of the same structure with other weights.
        plan: from `plan`, from JSON or made by hand.
        inputs: example inputs, to count MACs anew; None keeps the plan's count of them.
        inplace: modify the model itself instead of a copy.
        adapter: a fresh one, in place of the one that the installed plugins have for the model.

    Returns:
        The compressed model and the plan with the errors measured on this model. A layer that must
        be left alone in this model (tied, for example) is, with that reason.

    Raises:
        RankfoldError: the plan names a layer that the model does not have or that has another
            shape, an unknown method, or a rank out of range; the model is then unchanged.

    Example:
        A plan that was stored, done to a model:

        >>> model = nn.Sequential(nn.Linear(48, 64), nn.ReLU())  # weight (64, 48)
        >>> text = rf.plan(model, rf.Ranks(8)).to_json()
        >>> small = rf.apply(model, rf.Plan.from_json(text))
        >>> [tuple(parameter.shape) for parameter in small.model.parameters()]
        [(8, 48), (64, 8), (64,)]
    """
    if not isinstance(plan, Plan):
        raise RankfoldError(f"plan: {type(plan).__name__}; give a rankfold.Plan")
    validate(plan)
    methods = sorted({layer.method for layer in plan.replaced if layer.method is not None})
    settings = settings_of(methods or None, plan.placement, plan.seed)
    session = open_session(opened(model), inputs, settings, adapter)
    check_planned(plan.layers, session.layer_classes)
    # A plan with MACs was made on example inputs, whose trace found its layers to be replaceable.
    if any(layer.macs for layer in plan.layers) and session.can.recalling is not None:
        session.can.recalling.recall()
    done, modules = _carried_out(session, plan)
    small, stale = replaced_where_possible(session.can, session.model, modules, inplace=inplace)
    # Here the rest of the plan stays as it is: a plan says what to do, and no policy is asked anew.
    done |= {path: undone(done[path], reason) for path, reason in stale.items()}
    for layer in done.values():
        registry().layer_done(layer)
    applied = msgspec.structs.replace(plan, layers=tuple(done.values()), size=session.size)
    registry().model_done(small, applied)
    return Compressed(small, applied)


def _carried_out(session: Session, plan: Plan) -> tuple[dict[str, LayerPlan], dict[str, Any]]:
    """Return what is done to each layer by a plan, and the modules in the place of some."""
    paths = {path: (path,) for path in session.layer_classes}
    layers = read_layers(session, Calibrated(), paths)
    wanted = {layer.path: layer for layer in plan.layers}
    done: dict[str, LayerPlan] = {}
    modules: dict[str, Any] = {}
    with progress("decomposing", len(paths)) as advance:
        for path in paths:
            advance(path)
            # A plan may be of some layers only; all of the model are listed in the result.
            planned = wanted.get(path, LayerPlan(path=path, reason="not in the plan"))
            decision = _planned(session, layers, planned)
            if session.inputs is None and path in layers.layers:
                # Without inputs nothing was counted here; the plan's count holds where the shapes
                # are those it had.
                decision = decision.with_macs(_macs_of(planned, decision.layer))
            # As `compress` does, so that a plan carried out later gives the same weights to the
            # bit.
            rng = np.random.default_rng(plan.seed)
            done[path], module = build(session.can, session.model, decision, rng)
            if module is not None:
                modules[path] = module
    return done, modules


def _planned(session: Session, layers: ModelLayers, planned: LayerPlan) -> Decision:
    """Decompose a layer as a plan says."""
    path, kind = planned.path, session.layer_classes[planned.path]
    try:
        if path not in layers.layers:
            raise Refused(layers.refusals[path])
        layer = layers.layers[path]
        if planned.op != kind:  # which stands for a layer that could not be read
            check_same(planned, layer.op)
        reason = planned.reason or ("" if planned.method else "left alone by the plan")
        decision = decide(layer, Choice(planned.method, planned.ranks, reason))
        layer.release()
        return decision.with_pivots(planned.pivots).with_spectra(planned.spectra)
    except Refused as refused:
        # A layer that the plan leaves alone keeps the plan's reason, even if it cannot be read
        # here.
        reason = planned.reason if planned.method is None else refused.reason
        return Decision(LayerPlan(path=path, op=kind, reason=reason or refused.reason))


def _macs_of(planned: LayerPlan, done: LayerPlan) -> tuple[int, int] | None:
    """Return the plan's count of MACs, if it was of what is done; None for a plan made by hand."""
    if planned.macs is None:
        return None
    if done.method is None:
        return planned.macs[0], planned.macs[0]
    same = planned.params is None or planned.params == done.params
    return planned.macs if same else None
