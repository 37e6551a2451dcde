"""The optional protocols that an adapter implements, looked up once per call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from rankfold.adapters.base import (
    Adapter,
    BuildsInterpolations,
    Calibrates,
    Checked,
    CountsParameters,
    Distributed,
    Expands,
    Folding,
    NamesOutputs,
    NamesParts,
    ReadsLayers,
    Recalling,
    Structured,
    Times,
)
from rankfold.adapters.compressed_models import (
    ExpandsInPlace,
    FollowsParameters,
    NamesStages,
)
from rankfold.adapters.distils import Distils
from rankfold.adapters.inputs import TakesArrays, TellsExamples
from rankfold.adapters.loading import LoadsRenamed
from rankfold.calibration.batches import Calibration, Loss


@dataclass(frozen=True, eq=False)
class Capabilities:
    """An adapter by its parts; None for each that it lacks.

    Attributes:
        adapter: as given.
        name: of its class, for messages.
        calibrates: gathers moments and runs two models side by side.
        distils: trains a compressed model towards the original.
        times: measures layers and models.
        expands: undoes a compression.
        checked: finds layers that stay at work after they were replaced.
        distributed: reads layers in other processes.
        folding: says what is folded into a weight.
        builds_interpolations: builds interpolative stages.
        counts_parameters: counts those of a layer that are not of its op, too.
        structured: reads layers without values.
        recalling: takes it that a trace has run.
        loads_renamed: loads files that have other names for tensors.
        names_parts: tells what a call changes for a while.
        takes_arrays: makes inputs of arrays.
        names_outputs: knows outputs of a model by their names.
        tells_examples: knows which arrays of inputs have an axis of examples.
        names_stages: tells the stages of chains.
        expands_in_place: undoes a compression in the compressed model.
        follows_parameters: gives optimizers the parameters of a changed model.
    """

    adapter: ReadsLayers
    name: str
    calibrates: Calibrates | None
    distils: Distils | None
    times: Times | None
    expands: Expands | None
    checked: Checked | None
    distributed: Distributed | None
    folding: Folding | None
    builds_interpolations: BuildsInterpolations | None
    counts_parameters: CountsParameters | None
    structured: Structured | None
    recalling: Recalling | None
    loads_renamed: LoadsRenamed | None
    names_parts: NamesParts | None
    takes_arrays: TakesArrays | None
    names_outputs: NamesOutputs | None
    tells_examples: TellsExamples | None
    names_stages: NamesStages | None
    expands_in_place: ExpandsInPlace | None
    follows_parameters: FollowsParameters | None

    def calibration(self, batches: Any, inputs: Any, loss: Loss | None) -> Calibration:
        """Return calibration data by the adapter's rule of what examples are.

        Args:
            batches: as the user passes them.
            inputs: example inputs, or None.
            loss: as the user passes it.

        Raises:
            RankfoldError: see `Calibration.of`.
        """
        rule = None if self.tells_examples is None else self.tells_examples.has_examples
        return Calibration.of(batches, inputs, loss, rule)

    @property
    def builder(self) -> Adapter:
        """The adapter where layers are built: the stages up to the plan ask for none that does."""
        return cast(Adapter, self.adapter)


def capabilities(adapter: ReadsLayers) -> Capabilities:
    """Find out what an adapter offers."""
    return Capabilities(
        adapter,
        type(adapter).__name__,
        adapter if isinstance(adapter, Calibrates) else None,
        adapter if isinstance(adapter, Distils) else None,
        adapter if isinstance(adapter, Times) else None,
        adapter if isinstance(adapter, Expands) else None,
        adapter if isinstance(adapter, Checked) else None,
        adapter if isinstance(adapter, Distributed) else None,
        adapter if isinstance(adapter, Folding) else None,
        adapter if isinstance(adapter, BuildsInterpolations) else None,
        adapter if isinstance(adapter, CountsParameters) else None,
        adapter if isinstance(adapter, Structured) else None,
        adapter if isinstance(adapter, Recalling) else None,
        adapter if isinstance(adapter, LoadsRenamed) else None,
        adapter if isinstance(adapter, NamesParts) else None,
        adapter if isinstance(adapter, TakesArrays) else None,
        adapter if isinstance(adapter, NamesOutputs) else None,
        adapter if isinstance(adapter, TellsExamples) else None,
        adapter if isinstance(adapter, NamesStages) else None,
        adapter if isinstance(adapter, ExpandsInPlace) else None,
        adapter if isinstance(adapter, FollowsParameters) else None,
    )
