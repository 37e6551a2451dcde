"""`Plan`: what will be done to each layer of a model, and why; JSON both ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, SupportsFloat

import msgspec

from rankfold.decompose.base import Placement
from rankfold.errors import RankfoldError
from rankfold.layers.spectrum_record import SpectrumRecord
from rankfold.ops import Op, describe, without_geometry
from rankfold.plan.contents import contents, in_notebook, summary
from rankfold.plan.sensitivities import Sensitivities
from rankfold.plan.table import as_text
from rankfold.plan.tradeoff import Tradeoff
from rankfold.report.page import write

VERSION = 1
"""Of the JSON of a plan."""
_MOST = 10**30
"""No layer has more parameters or multiply-accumulates, and sums of such counts are floats yet."""
# Far below the largest float, 1.8e308, so that sums of such numbers are finite, too.
_LARGEST = 1e300


class LayerPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decision on one layer: the method and its ranks, or the reason why it is left alone.

    Attributes:
        path: the layer's path in the model.
        method: the decomposition's name; None where the layer is left alone.
        ranks: the ranks of the method, per group of a grouped convolution.
        reason: why the layer is left alone, or a remark on what is done.
        error: ‖W − Ŵ‖ / ‖W‖ of the weight.
        params: parameters (before, after); None where the layer could not be read.
        macs: multiply-accumulates of one forward pass on the example inputs (before, after); None
            where no inputs were given or the computation with its weight is not seen.
        op: what the layer is, for the table and to recognise the layer.
        predicted: ‖y − ŷ‖ / ‖y‖ of the layer's output on the calibration data, predicted from
            moments; None without such data.
        measured: the same, measured by running the replacement on that data. After a sequential
            refit ŷ is the output in the compressed model.
        refit: whether the weights were refitted to the original outputs on the inputs that the
            compressed model gives.
        sensitivity: of CP stages to noise, as a fine-tuning step makes it: the expected squared
            relative change of the weight per unit variance of noise relative to the factors. About
            one per stage where the rank-1 terms do not cancel; None for other methods.
        pivots: the channels that interpolative stages pass on, ascending, a tuple for each such
            stage of the chain; a plan that is carried out on other weights keeps to them.
        moments: how much of the moments of its inputs was gathered: "patches", "separable" (of
            wide patches the directions of most energy, and a separable rest) or "diagonal"; ""
            without calibration data.
        spectra: singular values of the unfoldings that the ranks are of, where a policy or a
            method had asked for them; as they were when the ranks were chosen.

    Example:
        >>> plan = rf.plan(nn.Sequential(nn.Linear(48, 64), nn.ReLU()), rf.Ranks(8))
        >>> layer = plan["0"]
        >>> layer.method, layer.ranks, layer.params, layer.reason
        ('svd', (8,), (3136, 960), '')
    """

    path: str
    method: str | None = None
    ranks: tuple[int, ...] = ()
    reason: str = ""
    error: float | None = None
    params: tuple[int, int] | None = None
    macs: tuple[int, int] | None = None
    op: str = ""
    predicted: float | None = None
    measured: float | None = None
    refit: bool = False
    sensitivity: float | None = None
    moments: str = ""
    pivots: tuple[tuple[int, ...], ...] = ()
    spectra: tuple[SpectrumRecord, ...] = ()

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"LayerPlan({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # Of the fields that were set those that are short: pivots and spectra are hundreds of
        # numbers.
        names = [f for f in self.__struct_fields__ if f not in ("pivots", "spectra")]
        values = ((name, getattr(self, name)) for name in names)
        return [(name, value) for name, value in values if value not in (None, "", (), False)]


class Trial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model that `Budget(drop=)` tried.

    Attributes:
        share: of the MACs, or of the parameters where there are no example inputs.
        score: what `evaluate` gave.
        kept: whether it is good enough.
    """

    share: float
    score: float
    kept: bool


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decisions on all layers of a model.

    Attributes:
        layers: one `LayerPlan` for every layer with weights, in the model's order.
        policy: the policy that chose, for the record.
        size: parameters of the whole model before, shared and tied ones counted once; 0 where that
            is not known.
        seed: of the run.
        placement: how the scale is spread over the stages of a chain.
        loss: the loss on the held-out quarter of the calibration examples (before, after); None
            where it was not measured.
            Under "cross_entropy" and "outputs" it is the distance from the original's outputs.
        predicted_latency: time of one forward pass on the example inputs as a share of the
            original's, from times of the layers; None without a limit on it.
        latency: the same, measured on the whole models in turns.
        notes: what the policies have to say of the whole.
        trials: the models that `Budget(drop=)` tried, in order; the original is the first.
        tradeoff: cost against predicted loss, as a budget saw it; None for other policies.
        call: that made it, as Python, without the data.
        command: the command line that makes it again, without the data: MODEL stands for a file, or
            for package.module:factory --weights FILE; PLAN, where there is no other way, for a file
            with this plan.
        version: of this format.

    Example:
        >>> network = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> plan = rf.plan(network, rf.Ratio(0.25))
        >>> [layer.path for layer in plan.replaced], plan.model_params
        (['0'], (3786, 2058))
        >>> rf.Plan.from_json(plan.to_json()) == plan
        True
    """

    layers: tuple[LayerPlan, ...]
    policy: str = ""
    size: int = 0
    seed: int = 0
    placement: Placement = "balanced"
    loss: tuple[float, float] | None = None
    predicted_latency: float | None = None
    latency: float | None = None
    notes: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    tradeoff: Tradeoff | None = None
    call: str = ""
    command: str = ""
    version: int = VERSION

    def __getitem__(self, path: str) -> LayerPlan:
        """Return the plan of the layer at a path."""
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise KeyError(path)

    def layer_of(self, name: str) -> LayerPlan | None:
        """Return the replaced layer that a parameter of the compressed model is of, or None.

        Args:
            name: of the parameter, with dots: "blocks.0.conv.1.weight".
        """
        # Paths may lie below one another, that of a parameter below its module's, and "" (a model
        # that is one layer) above all: the longest is the nearest owner.
        owners = [
            layer
            for layer in self.replaced
            if not layer.path or name == layer.path or name.startswith(f"{layer.path}.")
        ]
        return max(owners, key=lambda layer: len(layer.path), default=None)

    @property
    def replaced(self) -> tuple[LayerPlan, ...]:
        """Layers that will be decomposed."""
        return tuple(layer for layer in self.layers if layer.method is not None)

    @property
    def params(self) -> tuple[int, int]:
        """Parameters (before, after) of all layers that could be read."""
        return _total(layer.params for layer in self.layers)

    @property
    def model_params(self) -> tuple[int, int]:
        """Parameters (before, after) of the whole model, those of its layers where not known."""
        before, after = self.params
        # What is not in a layer (normalizations, biases of their own) stays, and so do layers that
        # could not be read: both are in `size` alone.
        whole = self.size or before
        return whole, whole - before + after

    @property
    def macs(self) -> tuple[int, int] | None:
        """Multiply-accumulates (before, after) of these layers; None without example inputs."""
        # Layers that could not be read have no count, even where there were inputs.
        if all(layer.macs is None for layer in self.layers):
            return None
        return _total(layer.macs for layer in self.layers)

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan from JSON text.

        Raises:
            RankfoldError: not JSON, of another version, or not a plan; the message says where.
        """
        try:
            plan = msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RankfoldError(f"not a rankfold plan: {error}") from None
        validate(plan)
        return plan

    def __repr__(self) -> str:
        return f"Plan({summary(self)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("", summary(self))]

    def _repr_html_(self) -> str | None:
        return in_notebook(self, "Plan")

    def __str__(self) -> str:
        return as_text(contents(self))

    def report(
        self, file: str | PathLike[str], *, sensitivity: Sensitivities | None = None
    ) -> Path:
        """Write the plan as one HTML page: what was done to each layer, why, and what it costs.

        The page needs no network, and nothing but a browser. It takes the extra `report`. A file
        that ends in .md is a model card instead: Markdown with what the plan knows filled in, and
        what its author has yet to say in capital letters.

        Args:
            file: to write, "report.html" for instance; one that is there is replaced.
            sensitivity: what `rankfold.sensitivity` measured, to be shown as well.

        Returns:
            The path of the file.

        Raises:
            RankfoldError: Jinja2 is not installed, or the file cannot be written.
        """
        if not isinstance(sensitivity, Sensitivities | None):
            raise RankfoldError(
                f"sensitivity: {type(sensitivity).__name__}; give what rankfold.sensitivity() gave"
            )
        return write(self, file, sensitivity)


def validate(plan: Plan) -> None:
    """Check what the types alone do not say, and of a plan made by hand the types, too.

    Raises:
        RankfoldError: another version, a layer twice, a method without ranks or the reverse, a
            count or an error that none can be; the message names the layer and the field.
    """
    if plan.version != VERSION:
        raise RankfoldError(
            f"the plan has version {plan.version}; this rankfold reads version {VERSION}"
        )
    _check_counts("the plan", "size", (plan.size,))
    for name in ("predicted_latency", "latency"):
        _check_measure("the plan", name, getattr(plan, name))
    for trial in plan.trials:
        _check_measure("the plan", "trials: share", trial.share)
        _check_finite("trials: score", trial.score)
    for loss in plan.loss or ():
        _check_finite("loss", loss)
    if plan.tradeoff is not None and plan.tradeoff.why_not:
        raise RankfoldError(f"the plan: tradeoff holds {plan.tradeoff.why_not}")
    seen: set[str] = set()
    for layer in plan.layers:
        if layer.path in seen:
            raise RankfoldError(f"layer {layer.path!r} stands twice in the plan")
        seen.add(layer.path)
        if (layer.method is None) != (not layer.ranks):
            raise RankfoldError(
                f"layer {layer.path!r}: method {layer.method!r} with ranks {layer.ranks}; a "
                "method needs ranks and ranks need a method"
            )
        _check_counts(f"layer {layer.path!r}", "ranks", layer.ranks, least=1)
        for pivots in layer.pivots:
            _check_counts(f"layer {layer.path!r}", "pivots", pivots)
        for record in layer.spectra:
            if record.why_not:
                raise RankfoldError(f"layer {layer.path!r}: spectra hold {record.why_not}")
        for name in ("params", "macs"):
            _check_counts(f"layer {layer.path!r}", name, getattr(layer, name) or ())
        for name in ("error", "predicted", "measured", "sensitivity"):
            _check_measure(f"layer {layer.path!r}", name, getattr(layer, name))


def _check_counts(owner: str, field: str, counts: Iterable[Any], least: int = 0) -> None:
    for count in counts:
        # NumPy's integers count: plans are made by hand from arrays of ranks. A bool is an
        # Integral, too.
        whole = isinstance(count, Integral) and not isinstance(count, bool)
        if not whole or not least <= count <= _MOST:
            raise RankfoldError(
                f"{owner}: {field} holds {_shown(count)}; use at least {least}, at most {_MOST:.0e}"
            )


def _check_measure(owner: str, field: str, value: Any) -> None:
    if value is None:
        return
    number = isinstance(value, (Integral, float)) and not isinstance(value, bool)
    # Written so that NaN fails: it compares as false with everything.
    if not number or not 0.0 <= value <= _LARGEST:
        raise RankfoldError(
            f"{owner}: {field} is {_shown(value)}; use a number from 0 to {_LARGEST:.0e}, or None"
        )


def _check_finite(field: str, value: Any) -> None:
    """Check a number of any sign: JSON has none for what is not finite."""
    if not isinstance(value, SupportsFloat) or not abs(float(value)) <= _LARGEST:
        raise RankfoldError(
            f"the plan: {field} is {_shown(value)}; use a number of a size up to {_LARGEST:.0e}"
        )


def _shown(value: object) -> str:
    """Show a value that may be an integer of too many digits for Python to write."""
    if isinstance(value, int) and abs(value) > _MOST:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


def _total(pairs: Iterable[tuple[int, int] | None]) -> tuple[int, int]:
    known = [pair for pair in pairs if pair is not None]
    return sum(before for before, _ in known), sum(after for _, after in known)


def check_planned(planned: Iterable[LayerPlan], layers: Mapping[str, str], hint: str = "") -> None:
    """Check that a model has every layer of a plan.

    Args:
        planned: the layers of the plan.
        layers: those of the model.
        hint: what else may be wrong.

    Raises:
        RankfoldError: naming the first layer that it lacks.
    """
    for layer in planned:
        if layer.path not in layers:
            raise RankfoldError(
                f"layer {layer.path!r} of the plan is not in the model; the plan is for another"
                f"{hint}"
            )


def check_same(planned: LayerPlan, op: Op) -> None:
    """Check that a layer is the one that was planned, in a checkpoint perhaps.

    Raises:
        RankfoldError: naming the layer and what it is.
    """
    # A plan for a checkpoint describes a convolution without stride, padding and dilation, which no
    # file has; "" is a plan that says nothing of it.
    if planned.op and planned.op not in (describe(op), describe(without_geometry(op))):
        raise RankfoldError(
            f"layer {planned.path!r} is {describe(op)}, but the plan is for {planned.op}"
        )
