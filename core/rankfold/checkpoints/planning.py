"""The plan for a checkpoint: by a policy, or one that was made before, checked against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from rankfold.checkpoints.arguments import check_call, layers_of, moments_file, opened
from rankfold.checkpoints.planner import CheckpointAdapter, LayerTensors
from rankfold.checkpoints.reader import Checkpoint
from rankfold.decompose.base import Placement
from rankfold.errors import RankfoldError
from rankfold.pipeline.api import plan as planned
from rankfold.pipeline.call_text import of_checkpoint
from rankfold.plan.plan import LayerPlan, Plan, check_planned, validate
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy
from rankfold.policies.planned import Planned
from rankfold.policies.selection import Selection
from rankfold.storage.moments_file import Moments


@dataclass(frozen=True, eq=False)
class PlanRequest:
    """Checked arguments of a plan for a checkpoint.

    Attributes:
        source: the checkpoint.
        adapter: reads its layers.
        layer_tensors: the layers by path.
        selection: the policies, and the layers that they decide on.
        methods: names of the allowed decompositions; None for the default ones.
        placement: of the scale over a chain.
        seed: of all randomness.
        inputs: shapes by pattern.
        moments: the file of them; None without.
        executor: ranks several layers at once.
        earlier: the plan that is to be carried out; None where a policy is asked.
    """

    source: Checkpoint
    adapter: CheckpointAdapter
    layer_tensors: Mapping[str, LayerTensors]
    selection: Selection
    methods: Sequence[str] | None
    placement: Placement
    seed: int
    inputs: Mapping[str, Any] | None
    moments: Path | None
    executor: Executor | None
    earlier: Plan | None

    def plan(self) -> Plan:
        """Return the plan.

        Raises:
            RankfoldError: as `rankfold.compress_checkpoint`.
        """
        plan = planned(
            self.source,
            self.selection.policy,
            inputs=self.inputs,
            methods=self.methods,
            include=self.selection.include,
            exclude=self.selection.exclude,
            overrides=self.selection.overrides,
            placement=self.placement,
            seed=self.seed,
            moments=None if self.moments is None else Moments.of_file(self.moments),
            executor=self.executor,
            adapter=self.adapter,
        )
        if self.earlier is not None:
            plan = _as_planned(self.earlier, plan)
        notes = dict.fromkeys((*self.source.notes, *plan.notes))
        return msgspec.structs.replace(plan, notes=tuple(notes), call=of_checkpoint(plan.call))


def request(
    checkpoint: str | PathLike[str],
    policy: Policy | str | Plan,
    *,
    inputs: Mapping[str, Any] | None = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    overrides: Mapping[str, Policy | str] | None = None,
    key: str | None = None,
    placement: Placement = "balanced",
    seed: int = 0,
    moments: str | PathLike[str] | None = None,
    executor: Executor | None = None,
) -> PlanRequest:
    """Check what is to be planned; the arguments are those of `rankfold.compress_checkpoint`.

    Raises:
        RankfoldError: as there, before anything is planned or written.
    """
    earlier = None
    if isinstance(policy, Plan):
        earlier = policy
        if methods or include or exclude or overrides:
            raise RankfoldError(
                "a plan has its methods and layers: leave out methods=, include=, exclude= and "
                "overrides=, or edit the plan"
            )
        validate(earlier)
        methods = sorted({layer.method for layer in earlier.replaced if layer.method}) or None
        include = [layer.path for layer in earlier.replaced] or None
        exclude = () if include else "*"
        policy, placement, seed = Planned.of(earlier), earlier.placement, earlier.seed
    selection = registry().selection(policy, include, exclude, overrides)
    check_call(selection.policy, executor)
    source = opened(checkpoint, key)
    adapter = CheckpointAdapter(lambda path: bool(selection.left_out((path,))), inputs)
    layer_tensors = layers_of(source, adapter)
    if earlier is not None:
        check_planned(earlier.layers, dict.fromkeys(layer_tensors, ""))
    known = moments_file(moments)
    return PlanRequest(
        source,
        adapter,
        layer_tensors,
        selection,
        methods,
        placement,
        seed,
        inputs,
        known,
        executor,
        earlier,
    )


def _as_planned(earlier: Plan, plan: Plan) -> Plan:
    """Return an earlier plan with what it comes to on this checkpoint."""
    reasons = {layer.path: layer.reason for layer in earlier.layers if layer.method is None}
    wanted = {layer.path: layer for layer in earlier.replaced}

    def told(layer: LayerPlan) -> LayerPlan:
        if layer.path in wanted:
            return msgspec.structs.replace(layer, spectra=wanted[layer.path].spectra)
        reason = reasons.get(layer.path, "not in the plan") or "left alone by the plan"
        return msgspec.structs.replace(layer, reason=reason)

    layers = tuple(map(told, plan.layers))
    notes = dict.fromkeys((*earlier.notes, *plan.notes))
    return msgspec.structs.replace(earlier, layers=layers, size=plan.size, notes=tuple(notes))
