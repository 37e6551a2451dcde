"""Stage 1 of a call: one model under one adapter, traced on example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from rankfold.adapters.base import ReadsLayers, Trace
from rankfold.adapters.capabilities import Capabilities, capabilities
from rankfold.decompose.base import Placement
from rankfold.errors import RankfoldError, Refused
from rankfold.faults import contained, of_adapter, shown
from rankfold.layers.settings import Settings
from rankfold.ops import Op, params
from rankfold.plugins.registry import registry
from rankfold.policies.selection import listed

METHODS = ("svd", "tucker2", "spatial_svd", "channel_svd")
"""The default methods, in order of preference: those with a closed form or as good as one."""

INTERPOLATIVE = ("svd_id", "tucker2_id", "channel_svd_id")
"""Further default methods, for policies that allow them."""


def settings_of(
    methods: str | Sequence[str] | None,
    placement: Placement,
    seed: int,
    executor: Executor | None = None,
    *,
    interpolative: bool = False,
) -> Settings:
    """Check the settings that a caller gives.

    Args:
        methods: names of the allowed decompositions; None for the default ones.
        placement: how the scale is spread over a chain.
        seed: of all randomness.
        executor: works on several layers at once.
        interpolative: whether interpolative methods are among the default ones.

    Raises:
        RankfoldError: an unknown placement or method, or a seed or an executor that is none.
    """
    if executor is not None and not hasattr(executor, "submit"):
        raise RankfoldError(
            f"executor: {type(executor).__name__}; give a concurrent.futures.Executor"
        )
    if placement not in ("balanced", "classical"):
        raise RankfoldError(f"placement {placement!r}; use 'balanced' or 'classical'")
    check_seed(seed)
    default = (*METHODS, *INTERPOLATIVE) if interpolative else METHODS
    if methods is not None and not isinstance(methods, (str, Sequence)):
        raise RankfoldError(f"methods: {shown(methods)}; give names, such as ('svd', 'tucker2')")
    names = default if methods is None else listed(methods)
    return Settings(registry().methods(names), placement, seed, executor)


def check_seed(seed: object) -> None:
    """Check the seed of all randomness.

    Raises:
        RankfoldError: it is no int from 0 to 2**63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise RankfoldError(f"seed {seed!r}; use an int from 0 to 2**63 - 1")


@dataclass(frozen=True, eq=False)
class Session:
    """One model under one adapter.

    Attributes:
        can: what the adapter offers.
        model: the model.
        inputs: example inputs or None.
        trace: what one forward pass on them shows; None without them.
        layer_classes: the class name of each layer by path, in the model's order.
        size: parameters of the model.
        settings: how it is decomposed.
    """

    can: Capabilities
    model: Any
    inputs: Any
    trace: Trace | None
    layer_classes: Mapping[str, str]
    size: int
    settings: Settings

    @property
    def adapter(self) -> ReadsLayers:
        """The model's adapter."""
        return self.can.adapter

    def read(self, path: str) -> Op:
        """Read the layer at a path.

        Raises:
            Refused: the adapter or the trace forbids to replace it.
        """
        with contained("reading the layer", Refused):
            op = self.adapter.read(self.model, path)
        # The layer's own reason comes first: it says what the layer is, the trace only how it is
        # used.
        if self.trace is not None and path in self.trace.refusals:
            raise Refused(self.trace.refusals[path])
        return op

    def reader(self, path: str) -> Callable[[], Op] | None:
        """Return a function that reads the layer in another process; None where there is none."""
        if self.can.distributed is None:
            return None
        return self.can.distributed.reader(self.model, path)

    def folded(self, path: str) -> str:
        """Say in words how the layer computes the op's weight; "" where it stores it."""
        return "" if self.can.folding is None else self.can.folding.folded(self.model, path)

    def not_interpolated(self, path: str) -> str:
        """Say why no interpolative stages can be in a layer's place; "" where they can."""
        builds = self.can.builds_interpolations
        if builds is None:
            return f"{self.can.name} builds no interpolative stages"
        return builds.why_not_interpolated(self.model, path)

    def parameters(self, path: str, op: Op) -> int:
        """Return the number of parameters of a layer; those of its op where no more is known."""
        if self.can.counts_parameters is None:
            return params(op)
        return self.can.counts_parameters.parameters(self.model, path, op)

    def uncounted(self, path: str) -> bool:
        """Return whether a layer is at work on the example inputs with an unknown count of MACs."""
        trace = self.trace
        return trace is not None and path in trace.uncounted

    def model_seconds(self) -> float:
        """Measure the time of one forward pass on the example inputs, in seconds.

        Raises:
            RankfoldError: the adapter measures no times.
        """
        if self.can.times is None:
            raise RankfoldError(f"{self.can.name} measures no times; use macs=")
        return self.can.times.model_seconds([self.model], self.inputs)[0]


def open_session(
    model: Any, inputs: Any, settings: Settings, adapter: ReadsLayers | None = None
) -> Session:
    """Trace a model and list its layers.

    Args:
        model: the model.
        inputs: example inputs or None.
        settings: how it is decomposed.
        adapter: a fresh one; None for that of the installed plugins.

    Raises:
        RankfoldError: no adapter knows the model, or the model fails on the inputs.
    """
    can = capabilities(adapter or registry().adapter(model))
    with of_adapter(can.adapter):
        # The trace first: some frameworks show their layers only once the model has been called.
        trace = None if inputs is None else can.adapter.trace(model, inputs)
        classes = can.adapter.layers(model)
        size = can.adapter.size(model)
    return Session(can, model, inputs, trace, classes, size, settings)
