"""Two runs of one model side by side, in one of which layers are replaced as they are met.

Neither run is of a copy: `forward` of each watched layer is exchanged while they last, and does in
each run what its role asks for. All batches advance together, layer by layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from rankfold.adapters.base import LayerVisitor
from rankfold.calibration.accumulators import RelativeDistance
from rankfold.calibration.batches import Calibration, examples, is_held_out
from rankfold.calibration.losses import failure
from rankfold.calibration.moments import RegressionSums, has_regression
from rankfold.calibration.position_sample import chunks
from rankfold.errors import RankfoldError, Refused
from rankfold.faults import let_through
from rankfold.ops import Chain, Embedding, Op
from rankfold.state.restoration import Restored, settled
from rankfold_torch import tracing
from rankfold_torch.calibration import losses, patches
from rankfold_torch.calibration.sums import OutputSums, add_distance, projected
from rankfold_torch.model_state import Watching, parameters_kept, unchanged
from rankfold_torch.offloading import brought, cuda_devices
from rankfold_torch.paired_run.coroutine_threads import CoroutineThread
from rankfold_torch.paired_run.module_state import PerRunState
from rankfold_torch.temporary_changes import ABSENT, exchanged

_ORIGINAL, _COMPRESSED = "original", "compressed"


@settled
def run_paired(
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, Op],
    visit: LayerVisitor,
    build: Callable[[str, Chain], nn.Module],
    *,
    sequential: bool,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Visit and replace layers as they are called; see `rankfold.adapters.base.Calibrates`.

    Args:
        model: the model.
        calibration: the batches.
        layers: the layers to meet.
        visit: gives the chain of a layer.
        build: the module of a chain in the place of a layer; a layer stays if it is refused.
        sequential: whether the replacements work on what the replacements before them give.
        rng: draws the sample of positions.
    """
    with ExitStack() as stack:
        stack.enter_context(unchanged(model))
        watching = stack.enter_context(parameters_kept(model))
        paired = _PairedRun(model, layers, visit, build, rng, sequential=sequential)
        stack.enter_context(paired.watching())
        batches = paired.begun(calibration, watching)
        threads = [thread for batch in batches for thread in batch.threads]
        # Entered last, so undone first: no thread is inside the model when its `forward`s are put
        # back.
        stack.enter_context(Restored(partial(_stop, threads)))
        paired.run(batches)
    return {path: error.value for path, error in paired.errors.items()}


@dataclass(eq=False)
class _Call:
    """One call of a layer in one run, which waits for what is to be done.

    Attributes:
        path: of the layer.
        number: of the call in its run.
        x: the input.
        y: the output, in the original model; in the compressed one what its own is compared to.
        alone: in the original model, whether the replacement is to be compared on this input.
    """

    path: str
    number: int
    x: torch.Tensor
    y: torch.Tensor | None = None
    alone: bool = False


@dataclass(eq=False)
class _Batch:
    """The runs of one batch; `compressed` is None when only the original model runs."""

    index: int
    first: int
    examples: int
    original: CoroutineThread
    compressed: CoroutineThread | None

    @property
    def threads(self) -> list[CoroutineThread]:
        """Runs of the batch, the compressed one first."""
        return [thread for thread in (self.compressed, self.original) if thread is not None]

    def part(self) -> None:
        """End the compressed run."""
        if self.compressed is not None:
            self.compressed.stop()
            self.compressed = None


class _PairedRun:
    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Op],
        visit: LayerVisitor,
        build: Callable[[str, Chain], nn.Module],
        rng: np.random.Generator,
        *,
        sequential: bool,
    ) -> None:
        self._model = model
        self._sequential = sequential
        self._layers = layers
        # Mostly the order of calls. The grouping of batches in `run` profits from it; the end of
        # its loop does not depend on it.
        self._order = {path: index for index, path in enumerate(layers)}
        self._visit = visit
        self._build = build
        self._rng = rng
        self._remembered = PerRunState(model)
        self._parted = False
        self._total = 0
        self._modules: dict[str, nn.Module | None] = {}
        self._watched: dict[str, tuple[nn.Module, Callable[..., Any]]] = {}
        for path in layers:
            # `forward` of the instance is exchanged, in its `__dict__`: the class may be shared
            # with other models, and hooks on the module go on running around it.
            module = model.get_submodule(path)
            if not isinstance(module, torch.jit.ScriptModule):
                self._watched[path] = module, module.forward
        self._places = [(vars(module), "forward") for module, _ in self._watched.values()]
        # Mostly ABSENT, as `forward` comes from the class. Where something else has put a function
        # on the instance, that is what stays usual.
        self._usual = [known.get(name, ABSENT) for known, name in self._places]
        self.errors: dict[str, RelativeDistance] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Make layers pause inside when they are called in a turn."""
        values = [partial(self._forward, path, usual) for path, (_, usual) in self._watched.items()]
        with self._remembered.noticing(), exchanged(self._places, values):
            yield

    @contextmanager
    def _lifted(self) -> Iterator[None]:
        """Put the usual `forward` of layers back inside, while all turns are paused."""
        # `visit` and `build` may call layers in this thread, and copy them: a copy must not carry
        # the exchanged `forward`.
        with exchanged(self._places, self._usual):
            yield

    def begun(self, calibration: Calibration, watching: Watching) -> list[_Batch]:
        """Build the runs of all batches, not started."""
        # Only devices of the model: to read the random state of another would make a context on it.
        devices = cuda_devices(self._model)
        batches = []
        for index, inputs in enumerate(calibration.inputs):
            count = examples(inputs)
            forward = partial(_forward_pass, self._model, inputs, watching)
            original = CoroutineThread(forward, devices, _ORIGINAL)
            compressed = (
                CoroutineThread(forward, devices, _COMPRESSED) if self._sequential else None
            )
            batches.append(_Batch(index, self._total, count, original, compressed))
            self._total += count
        return batches

    def run(self, batches: Sequence[_Batch]) -> None:
        """Run all batches to their end, meeting the layers on the way."""
        # The sums for layer i must hold all batches, on inputs that come out of the replacements
        # of layers before it. One pass over the batches a layer would do, at the cost of L passes
        # for L layers. Here every batch instead waits inside its forward pass at the layer that it
        # has reached, so that one pass in total is enough.
        #
        # Only the batches at the lowest (order of the layer, number of the call) go on. A batch
        # further ahead waits until no other one is behind it. Where layers are called in their
        # order, the batches that call one are thus all paused at it when it is met, even if some
        # have skipped a layer before it (a branch on the data). In whatever order they are called,
        # every step moves some batch on: the loop ends when the forward passes do.
        for batch in batches:
            self._resume(batch)
        while live := [batch for batch in batches if batch.original.paused is not None]:
            path, number = min(
                ((batch.original.paused.path, batch.original.paused.number) for batch in live),
                key=lambda key: (self._order[key[0]], key[1]),
            )
            group = []
            for batch in live:
                call = batch.original.paused
                if (call.path, call.number) == (path, number):
                    group.append(batch)
            for batch in group:
                # The compressed run may take another way from here on, where a condition on the
                # data turns out otherwise. Its calls are then no longer those of the original, so
                # the batch goes on with the original alone, and errors are those of each layer by
                # itself.
                other = None if batch.compressed is None else batch.compressed.paused
                if self._sequential and (
                    other is None or (other.path, other.number) != (path, number)
                ):
                    self._parted = True
                    batch.part()
            # At its first call. A layer called again has its replacement by then.
            if path not in self._modules:
                self._meet(path, group)
            for batch in group:
                _pair(batch)
                self._resume(batch)

    def _resume(self, batch: _Batch) -> None:
        """Run both runs of a batch to their next pause, one after the other: they share a model."""
        for thread in batch.threads:
            try:
                with self._remembered.of(thread):
                    thread.resume()
            except RankfoldError:
                raise
            except Exception as error:  # whatever the model raises on these inputs
                let_through(error)
                raise failure(batch.index, error) from error
        # The original is through; what the compressed run would still do has no counterpart.
        if batch.original.paused is None:
            batch.part()

    def _meet(self, path: str, group: Sequence[_Batch]) -> None:
        fit, held_out = self._regression_sums(path, group)
        with self._lifted():
            chain = self._visit(path, fit, held_out)
            try:
                self._modules[path] = self._build(path, chain)
                self.errors[path] = RelativeDistance()
            except Refused:
                self._modules[path] = None

    def _regression_sums(
        self, path: str, group: Sequence[_Batch]
    ) -> tuple[RegressionSums | None, RegressionSums | None]:
        op = self._layers[path]
        # Sums of inputs and outputs serve a regression on full rows; embeddings and the forms that
        # keep less have none. Once a batch has parted, some inputs would come from the compressed
        # run and others from the original one.
        if self._parted or isinstance(op, Embedding):
            return None, None
        basis = self._visit.basis(path)
        if not has_regression(op, basis):
            return None, None
        fit, held_out = OutputSums(held_out=False), OutputSums(held_out=True)
        for batch in group:
            call: _Call = batch.original.paused
            x = call.x if batch.compressed is None else batch.compressed.paused.x
            # Rows of inputs and targets are matched by position, so the shapes must agree.
            if x.shape != call.x.shape or call.y is None:
                return None, None
            drawn = patches.sample(op, x.shape, self._total, self._rng, basis)
            # A layer rule may read a layer whose output has another shape than the op's.
            if call.y.numel() != drawn.images * drawn.positions * len(op.weight):
                return None, None
            taken = patches.Inputs(op, x, drawn)
            for chunk in chunks(op, drawn):
                # The input of the compressed run against the output of the original one: the
                # replacement is fitted to undo errors of the layers before it as well.
                rows = projected(taken.take(chunk), basis)
                targets = patches.outputs(op, call.y, drawn, chunk)
                image = patches.places(drawn, chunk, rows.device)[0]
                # A model may fold time or windows into the batch axis: then several images belong
                # to one example, and are held out or kept together.
                number = batch.first + image * batch.examples // drawn.images
                kept = is_held_out(number, self._total)
                fit.add(rows[~kept], targets[~kept])
                held_out.add(rows[kept], targets[kept])
        sums = fit.regression_sums()
        return (None, None) if sums is None else (sums, held_out.regression_sums())

    def _forward(self, path: str, usual: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for `forward` of a watched layer."""
        # The same instance serves both runs and callers outside them: which of these calls is told
        # by the thread. The original run computes before it pauses, since its output is the target
        # of the fit; the compressed one after it, since its replacement is built in the pause.
        thread = threading.current_thread()
        x = args[0] if args else kwargs.get("input")
        if not isinstance(thread, CoroutineThread) or not isinstance(x, torch.Tensor):
            return usual(*args, **kwargs)
        thread.calls[path] += 1
        call = _Call(path, thread.calls[path], brought(self._watched[path][0], x))
        if thread.role == _ORIGINAL:
            call.y = usual(*args, **kwargs)
            thread.pause(call)
            module = self._modules[path]
            if call.alone and module is not None:
                add_distance(self.errors[path], call.y, module(x))
            return call.y
        thread.pause(call)
        module = self._modules[path]
        if module is None:
            return usual(*args, **kwargs)
        y = module(x)
        if call.y is not None:
            add_distance(self.errors[path], call.y, y)
        return y


def _stop(threads: Sequence[CoroutineThread]) -> None:
    for thread in threads:
        thread.stop()


def _forward_pass(model: nn.Module, inputs: Any, watching: Watching) -> None:
    with torch.no_grad(), watching():
        # Both runs get copies: a model that writes to its inputs would change those of the other
        # run.
        tracing.call(model, losses.cloned(inputs))


def _pair(batch: _Batch) -> None:
    """Set where the replacement of a layer that is paused at is compared to the layer."""
    call: _Call = batch.original.paused
    other: _Call | None = None if batch.compressed is None else batch.compressed.paused
    if other is not None and other.x.shape == call.x.shape:
        other.y = call.y
    else:
        call.alone = True
