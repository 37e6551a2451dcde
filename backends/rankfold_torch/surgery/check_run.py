"""Runs of a compressed model in which its original layers compute.

What replacements approximate plays no part in such a run: where the model goes and what it gives is
the same as before, unless it asks a layer for something that the replacement answers otherwise (its
class, the number of its parameters, an object that it holds) or calls a layer that is not there any
more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankfold.adapters.group_testing import blamed
from rankfold.errors import RankfoldError
from rankfold.faults import let_through, told
from rankfold.state.restoration import Restored, settled
from rankfold.state.transaction import Changes
from rankfold_torch import tracing
from rankfold_torch.calibration import losses
from rankfold_torch.layers.low_rank_sequential import NoValuesError
from rankfold_torch.layers.parameter_layers import original
from rankfold_torch.model_state import parameters_kept, unchanged
from rankfold_torch.surgery.exchange import exchange
from rankfold_torch.temporary_changes import Hook, exchanged, hooked

_DIFFERS = (
    "once it is replaced the model computes something else: it asks for the layer's class, for the "
    "number of its parameters or for what it holds"
)
_RUNS = 2
"""Further runs of the original and of the result in which a difference has to be the same."""
_REPEATS = 10
"""How many times as far as two runs of the original are apart a result may be."""


@dataclass(frozen=True, eq=False)
class Run:
    """Record of a run of a model.

    Attributes:
        inputs: of the model.
        calls: of its layers, by path or another key.
        outputs: tensors that it gave; None where they are not to be compared.
    """

    inputs: Any
    calls: Counter[Any]
    outputs: Sequence[torch.Tensor] | None


def outputs_in(output: Any) -> list[torch.Tensor]:
    """Return copies of the tensors in the output of a model, as far as they can be compared."""
    return [
        tensor.detach().clone()
        for tensor in losses.tensors(output)
        if type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    ]


@settled
def watched(
    model: nn.Module,
    inputs: Any,
    modules: Mapping[Any, nn.Module],
    acting: Sequence[tuple[nn.Module, nn.Module]] = (),
    entries: Sequence[tuple[dict[str, Any], str, Any]] = (),
) -> Run:
    """Run a model once, which is left as it was.

    Args:
        model: the model.
        inputs: of it.
        modules: whose calls are counted, by a key for each.
        acting: modules, each with another one that computes in its place.
        entries: dictionaries of the model, the name of an entry and what it has for the run.

    Raises:
        RankfoldError: the model fails.
    """
    counts: Counter[Any] = Counter()
    # What acts may be a part of another model.
    whole = nn.ModuleList([model, *(old for _, old in acting)])
    with ExitStack() as stack:
        stack.enter_context(unchanged(whole))
        stack.enter_context(parameters_kept(model))
        stack.enter_context(torch.no_grad())
        hooks = [
            (module, None, Hook(_count, counts, key))
            for key, module in modules.items()
            if not isinstance(module, torch.jit.ScriptModule)
        ]
        stack.enter_context(hooked(hooks))
        # `forward` is exchanged beneath the hooks: the replacement is called and counted, the old
        # layer computes, and nothing calls the old layer as a module.
        forwards = [(vars(new), "forward", old.forward) for new, old in acting]
        places = [(known, name) for known, name, _ in (*forwards, *entries)]
        values = [value for _, _, value in (*forwards, *entries)]
        stack.enter_context(exchanged(places, values))
        try:
            outputs = outputs_in(tracing.call(model, losses.cloned(inputs)))
        except Exception as error:  # whatever the model raises without its layers
            let_through(error)
            raise RankfoldError(
                f"the compressed model fails on the inputs with {told(error)}"
            ) from error
    return Run(inputs, counts, outputs)


def _count(
    counts: Counter[Any],
    key: Any,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    # As in the trace, whose extents count calls with a tensor alone.
    if isinstance(args[0] if args else kwargs.get("input"), torch.Tensor):
        counts[key] += 1


class CheckRun:
    """Check of a result against the model before.

    Args:
        model: the model; in place, the result itself.
        result: with the replacements.
        new: the replacements, by path.
        old: the layers that they replace.
        tensors: of the parameters that are replaced, by path.
        run: of the model before.
        undone: gives a context in which `model` is as it was.

    Attributes:
        called: after `left`, which of the modules that should be gone are called.
    """

    def __init__(
        self,
        model: nn.Module,
        result: nn.Module,
        new: Mapping[str, nn.Module],
        old: Mapping[str, nn.Module],
        tensors: Mapping[str, torch.Tensor],
        run: Run,
        undone: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._model = model
        self._result = result
        self._new = new
        self._old = old
        self._tensors = tensors
        self._run = run
        self._undone = undone
        self._allowed = 1.0
        self.called: list[str] = []

    @settled
    def left(self, gone: Mapping[str, nn.Module]) -> dict[str, str]:
        """Return by path why layers must be left alone.

        A model that fails or does something else by itself the second time (inputs used up, a
        cache, a counter, numbers drawn) says nothing about the result.

        Args:
            gone: modules that should not be called any more.

        Raises:
            RankfoldError: the result fails or differs, and not for its replacements.
        """
        try:
            seen = self._seen(self._new, gone)
        except RankfoldError as error:
            return {} if self._again() is None else self._failing(error)
        self.called = [path for path in gone if seen.calls[path, False]]
        other = self._otherwise(seen)
        apart = _apart(seen, self._run)
        if self.called or not (other or apart > self._allowed):
            return {}
        # Several in succession, as what has a state may alternate.
        again = [run for _ in range(_RUNS) if (run := self._again()) is not None]
        if len(again) < _RUNS:
            return {}
        self._allowed = max(1.0, _REPEATS * max(_apart(run, self._run) for run in again))
        # Only where the model itself is consistent from run to run does another count tell.
        steady = [p for p in other if all(run.calls[p] == self._run.calls[p] for run in again)]
        if not (steady or apart > self._allowed) or not self._persists():
            return {}
        if not steady:
            return self._blamed()
        return {
            path: f"in its place a module would be called {other[path]} times, not "
            f"{self._run.calls[path]}"
            for path in steady
        }

    def _otherwise(self, seen: Run) -> dict[str, int]:
        """Return how often replacements are called where that is not as often as their layers."""
        counts = {path: seen.calls[path, True] for path in self._new}
        return {path: n for path, n in counts.items() if n != self._run.calls[path]}

    def _persists(self) -> bool:
        """Return whether the result differs from the model in every further run, too."""
        for _ in range(_RUNS):
            with suppress(RankfoldError):  # which is a difference, too
                seen = self._seen(self._new)
                if not self._otherwise(seen) and _apart(seen, self._run) <= self._allowed:
                    return False
        return True

    def _failing(self, error: RankfoldError) -> dict[str, str]:
        """Return by path why layers must be left alone where the result fails with an error."""
        left: dict[str, str] = {}
        fault: RankfoldError | None = error
        while (asked := _asked(fault)) is not None and asked.path in self._new.keys() - left.keys():
            left[asked.path] = asked.reason
            # Without that layer the next error tells of another one.
            fault = self._error([path for path in self._new if path not in left])
        left = left or self._blamed()
        if not left:
            raise error
        return left

    def _error(self, paths: Collection[str]) -> RankfoldError | None:
        """Return the error that the result with replacements at some paths fails with."""
        try:
            self._seen(paths)
        except RankfoldError as error:
            return error
        return None

    def _blamed(self) -> dict[str, str]:
        """Return by path why layers must be left alone for the result to be as the model was.

        Raises:
            RankfoldError: it fails or differs without any replacement.
        """
        if "" in self._new:  # nothing surrounds it that could ask for anything
            return {}
        faults = [self._fault(()) for _ in range(1 + _RUNS)]
        if all(faults) and self._tensors:
            return dict.fromkeys(self._tensors, faults[0])
        # In place that is the model itself, and any fault is one by chance.
        if any(faults) and (self._result is self._model or not all(faults)):
            return {}
        if any(faults):
            raise RankfoldError(
                "a copy of the model, without any replacement, does not do what the model does; "
                "pass inplace=True"
            )
        return blamed(list(self._new), self._fault)

    def _fault(self, paths: Collection[str]) -> str:
        """Return what the result does otherwise with replacements at some paths; "" if nothing."""
        try:
            seen = self._seen(paths)
        except RankfoldError as error:
            return f"once it is replaced the model fails with {told(error.__cause__ or error)}"
        return _DIFFERS if _apart(seen, self._run) > self._allowed else ""

    def _seen(self, paths: Collection[str], gone: Mapping[str, nn.Module] | None = None) -> Run:
        """Run the result with the replacements at some paths, and the layers at the others."""
        # Keys tell the two kinds apart, as a layer and its replacement have the same path.
        modules = {(path, False): module for path, module in (gone or {}).items()}
        modules |= {(path, True): self._new[path] for path in paths}
        # All of them, as some may be held where layers do not get back.
        acting = [(module, self._old[path]) for path, module in self._new.items()]
        entries = [
            original(self._result.get_submodule(owner), name, tensor)
            for path, tensor in self._tensors.items()
            for owner, _, name in [path.rpartition(".")]
        ]
        with self._without([path for path in self._new if path not in paths]):
            return watched(self._result, self._run.inputs, modules, acting, entries)

    @contextmanager
    def _without(self, paths: Sequence[str]) -> Iterator[None]:
        """Have the layers in place of their replacements inside."""
        changes = Changes()
        layers = {id(self._new[path]): self._old[path] for path in paths}
        if layers:
            exchange(self._result, layers, changes)
        with Restored(changes.take_back):
            changes.make()
            yield

    def _again(self) -> Run | None:
        """Run the model before once more; None where it fails."""
        with self._undone():
            try:
                return watched(self._model, self._run.inputs, self._old)
            except RankfoldError:
                return None


def _asked(error: BaseException | None) -> NoValuesError | None:
    """Return the error of a weight that is not there among those that an error comes from."""
    while error is not None and not isinstance(error, NoValuesError):
        error = error.__cause__ or error.__context__
    return error


def _apart(run: Run, before: Run) -> float:
    """Return how far the outputs of a run are from those of one before; up to 1 it is rounding."""
    if run.outputs is None or before.outputs is None:
        return 0.0
    if [y.shape for y in run.outputs] != [x.shape for x in before.outputs]:
        return math.inf
    return max(map(_distance, run.outputs, before.outputs), default=0.0)


def _distance(y: torch.Tensor, x: torch.Tensor) -> float:
    """Return the distance of two tensors in parts of the second's norm and of its rounding."""
    if y.dtype != x.dtype or y.device != x.device:
        return math.inf
    is_number = x.is_floating_point() or x.is_complex()
    eps = torch.finfo(x.dtype).eps if is_number else 0.0
    if x.is_floating_point() and eps > torch.finfo(torch.float32).eps:
        y, x = y.float(), x.float()  # in half precision a norm soon overflows
    if torch.equal(y, x):
        return 0.0
    if not is_number:
        return math.inf
    same = (y == x) | (y.isnan() & x.isnan())
    size = float(x[x.isfinite()].norm())
    distance = float(torch.where(same, 0, y - x).norm()) / (size or 1.0)
    # A distance that is no number is not within anything.
    return math.inf if math.isnan(distance) else distance / math.sqrt(eps)
