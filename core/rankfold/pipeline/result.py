"""The result of a call: a compressed model and its plan."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, overload

from rankfold.adapters.base import Adapter
from rankfold.adapters.capabilities import Capabilities, capabilities
from rankfold.errors import RankfoldError, Refused
from rankfold.plan.contents import in_notebook, summary
from rankfold.plan.plan import Plan, check_planned
from rankfold.plan.sensitivities import Sensitivities
from rankfold.plugins.model_lock import exclusive
from rankfold.plugins.registry import registry
from rankfold.storage.folder import save
from rankfold.storage.model_files import opened, write_model, writes


@dataclass(frozen=True, repr=False)
class Compressed:
    """A compressed model and the plan it was made by.

    Attributes:
        model: the smaller model.
        plan: what was done to each layer, with measured errors.

    Example:
        >>> network = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = rf.compress(network, rf.Ratio(0.25))
        >>> small.plan.model_params  # before and after
        (3786, 2058)
        >>> small.save("out")
        >>> dense = small.expanded(network)  # the structure of the original, to be compressed anew
    """

    model: Any
    plan: Plan

    def __repr__(self) -> str:
        return f"Compressed({type(self.model).__name__}, {summary(self.plan)})"

    def _repr_html_(self) -> str | None:
        return in_notebook(self.plan, f"Compressed {type(self.model).__name__}")

    @overload
    def report(self) -> str: ...
    @overload
    def report(
        self, file: str | PathLike[str], *, sensitivity: Sensitivities | None = None
    ) -> Path: ...
    def report(
        self,
        file: str | PathLike[str] | None = None,
        *,
        sensitivity: Sensitivities | None = None,
    ) -> str | Path:
        """Render the plan as a table, or write it as an HTML page or as a model card.

        Args:
            file: of the page, "report.html" for instance; "README.md" for the card; None for the
                table.
            sensitivity: what `rankfold.sensitivity` measured, for the page.

        Returns:
            The table: method, ranks, cost, error and reason of each layer; or the path of the page.

        Raises:
            RankfoldError: as `Plan.report`.
        """
        if file is None:
            return str(self.plan)
        return self.plan.report(file, sensitivity=sensitivity)

    @exclusive("model", "self.model")
    def expanded(
        self,
        model: Any,
        *,
        inputs: Any = None,
        inplace: bool = False,
        adapter: Adapter | None = None,
    ) -> Any:
        """Return the original model with the weights of this one, to be compressed further.

        Chains are layers of their own: decomposed again one by one, they lose far more than the
        layer they stand for. So fine-tune, expand, and compress the result to less.

        Args:
            model: the model that was compressed; only its structure counts.
            inputs: example inputs, where its framework shows layers only when called.
            inplace: change the compressed model itself instead of a copy of it; the plan is then no
                longer of it.
            adapter: as for `plan`.

        Raises:
            RankfoldError: the model is another one, it cannot be changed in place, or what stands
                in a layer's place is no chain.
        """
        model = opened(model)
        can = capabilities(adapter or registry().adapter(model))
        if inputs is not None:
            can.adapter.trace(model, inputs)
        check_planned(self.plan.replaced, can.adapter.layers(model))
        try:
            dense = _dense(can, model, self, inplace=inplace)
        except Refused as refused:
            raise RankfoldError(f"the model cannot be expanded: {refused.reason}") from refused
        registry().model_expanded(dense, self.plan)
        return dense

    def save(self, folder: str | PathLike[str]) -> None:
        """Write plan.json and weights.safetensors; see `rankfold.load`.

        Where the framework has files that hold a whole model, and the path has the suffix of such a
        one (.onnx), it is written as that file, with the plan in it, and needs no loading.

        Args:
            folder: to write, or such a file.

        Raises:
            RankfoldError: it cannot be written, or the folder holds something else.
        """
        if writes(self.model, Path(folder)):
            write_model(self.model, self.plan, Path(folder))
        else:
            save(self.model, self.plan, Path(folder))


def _dense(can: Capabilities, model: Any, small: Compressed, *, inplace: bool) -> Any:
    """Undo a compression in the compressed model or in a copy of it; see `Compressed.expanded`."""
    paths = [layer.path for layer in small.plan.replaced]
    if inplace:
        if can.expands_in_place is None:
            raise RankfoldError(f"{can.name} cannot expand models in place; leave inplace= out")
        can.expands_in_place.expand(model, small.model, paths)
        return small.model
    if can.expands is None:
        raise RankfoldError(f"{can.name} cannot expand models")
    return can.expands.expanded(model, small.model, paths)
