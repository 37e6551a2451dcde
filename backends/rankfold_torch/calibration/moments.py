"""One pass over calibration data that gathers the moments of layers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from rankfold.calibration.accumulators import (
    gradient_not_finite,
    input_moment,
    input_not_finite,
    moment_not_finite,
)
from rankfold.calibration.array_store import ArrayStore
from rankfold.calibration.batches import Calibration, examples
from rankfold.calibration.losses import draws, failure
from rankfold.calibration.moments import (
    LayerMoments,
    StoredMoments,
    full_gradients,
    input_form,
)
from rankfold.calibration.patch_sketch import matrix_for
from rankfold.calibration.position_sample import chunks
from rankfold.errors import RankfoldError
from rankfold.faults import let_through, told
from rankfold.linalg import Array
from rankfold.ops import Embedding, Op
from rankfold.progress import Advance
from rankfold.state.restoration import Restored, settled
from rankfold_torch import tracing
from rankfold_torch.calibration import losses, patches
from rankfold_torch.calibration.shared_inputs import InputReader, SharedInputs, kind_of
from rankfold_torch.calibration.sums import (
    SquareSum,
    TensorSum,
    all_finite,
    mixtures,
    product,
    squares,
    working,
)
from rankfold_torch.model_state import parameters_kept, unchanged
from rankfold_torch.offloading import brought
from rankfold_torch.temporary_changes import Hook, hooked, recurrent_differentiable


def moments(
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, Op],
    rng: np.random.Generator,
    advance: Advance,
) -> Mapping[str, LayerMoments]:
    """Return the moments of the layers that run; see `rankfold.adapters.base.Calibrates`."""
    state = rng.bit_generator.state
    gathered = _gathered(model, calibration, layers, rng, advance, SharedInputs())
    if gathered is None:
        # Two layers had an input in common and later did not. With the same draws once more.
        rng.bit_generator.state = state
        gathered = _gathered(model, calibration, layers, rng, lambda item: None, None)
        assert gathered is not None
    return gathered


@settled
def _gathered(
    model: nn.Module,
    calibration: Calibration,
    layers: Mapping[str, Op],
    rng: np.random.Generator,
    advance: Advance,
    shared: SharedInputs | None,
) -> Mapping[str, LayerMoments] | None:
    """Return the moments of layers, or None where shared inputs turn out not to be shared."""
    counts = [examples(inputs) for inputs in calibration.inputs]
    often = draws(calibration, sum(counts))
    generators = losses.Generators(rng)
    gathering = _Gathering(sum(counts), rng, shared)
    store = ArrayStore()
    sums = {path: _Layer(path, op, store) for path, op in layers.items()}
    with ExitStack() as stack:
        # A caller's inference mode or no_grad would leave no graph to go back through. Before any
        # mode that sees operations: PyTorch's guard puts back what it found, also where an
        # interrupt has it collected long after that mode is gone.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(unchanged(model))
        stack.enter_context(parameters_kept(model))
        # After `unchanged`, which puts back the modes that this one sets.
        stack.enter_context(recurrent_differentiable(model))
        stack.enter_context(_without_gradients(model))
        stack.enter_context(torch.enable_grad())
        modules = [(model.get_submodule(path), layer) for path, layer in sums.items()]
        hooks = [
            (module, None, Hook(_after, gathering, layer))
            for module, layer in modules
            if not isinstance(module, torch.jit.ScriptModule)
        ]
        stack.enter_context(hooked(hooks))
        for index, inputs in enumerate(calibration.inputs):
            advance(f"batch {index}")
            if shared is not None:
                shared.begin()
            _batch(model, calibration, index, losses.cloned(inputs), often, generators, gathering)
            if shared is not None and not shared.holds:
                return None
    if shared is not None and not all(shared.agrees(layer.reader) for layer in sums.values()):
        return None
    total = sum(counts)
    run = {path: layer for path, layer in sums.items() if layer.sums.rows}
    for layer in run.values():
        layer.check()
        layer.finish(store)
    return StoredMoments({path: partial(run[path].moments, total, often) for path in run})


class _Gathering:
    """State that the hooks of all layers share."""

    def __init__(
        self, examples: int, rng: np.random.Generator, shared: SharedInputs | None
    ) -> None:
        self.examples = examples
        self.rng = rng
        self.shared = shared
        self.forward = False
        self.error: RankfoldError | None = None


class _InputSums:
    """Sums over the inputs of a layer, or of several that read the same.

    Attributes:
        rows: how many x.
        positions: at how many positions the layer is used.
    """

    def __init__(self, store: ArrayStore) -> None:
        self._store = store
        self._sums: dict[str, TensorSum | SquareSum] = {}
        self.rows = self.positions = 0

    def add(self, rows: int, terms: Mapping[str, torch.Tensor]) -> None:
        """Add sums over rows, by name."""
        self.rows += rows
        for name, term in terms.items():
            if name not in self._sums:
                self._sums[name] = TensorSum(self._store)
            self._sums[name].add(term)

    def add_square(self, name: str, rows: torch.Tensor) -> None:
        """Add the second moment of rows (rows, groups, d)."""
        total = self._sums.setdefault(name, SquareSum(self._store))
        total.add(rows)

    def mean(self, name: str) -> Array:
        """Return a mean over all rows."""
        return self._sums[name].over(self.rows)

    @property
    def is_finite(self) -> bool:
        """Whether all sums are finite."""
        return all(total.is_finite for total in self._sums.values())


class _Layer:
    """Sums of one layer."""

    def __init__(self, path: str, op: Op, store: ArrayStore) -> None:
        self.path = path
        self.op = op
        self.form = input_form(op)
        self.full = full_gradients(op)
        self._matrix: torch.Tensor | None = None
        # A model may call one layer in several threads.
        self._lock = threading.Lock()
        self.reader = InputReader(_InputSums(store), kind_of(op))
        self.grads = SquareSum(store) if self.full else TensorSum(store)

    @property
    def sums(self) -> _InputSums:
        """Sums over its inputs, which may be those of another layer."""
        return self.reader.sums

    @torch.no_grad()
    def add(self, x: torch.Tensor, gathering: _Gathering) -> None:
        """Add the input of one call."""
        op, sums = self.op, self.reader.separate
        if isinstance(op, Embedding):
            # The second moment of one-hot rows is diagonal: how often each row of the table is
            # looked up. The mean is the same.
            counts = torch.bincount(x.detach().reshape(-1).long(), minlength=len(op.weight))
            share = counts[None].double()
            with self._lock:
                sums.add(x.numel(), {"inputs": share, "mean": share})
                sums.positions += x.numel()
            return
        # Inputs are sampled, gradients below are not: a row of a convolution is as large as its
        # kernel, a gradient only as large as the channels.
        drawn = patches.sample(op, x.shape, gathering.examples, gathering.rng)
        shared, whole = gathering.shared, drawn.chosen is None
        if shared is not None and shared.covers(self.reader, x, whole=whole):
            return
        if not all_finite(x):
            raise input_not_finite(self.path)
        taken = patches.Inputs(op, x, drawn)
        with self._lock:
            for chunk in chunks(op, drawn):
                rows = taken.take(chunk)
                if self.form == "patches":
                    sums.add_square("inputs", rows)
                sums.add(len(rows), self._terms(rows))
            # Gradients are of all positions, and are divided by these.
            sums.positions += drawn.images * drawn.positions

    def _terms(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the sums over rows (rows, groups, d) that the layer's form asks for.

        Not the second moment of whole rows, for which they may have to wait.
        """
        mean = rows.sum(0)
        if self.form == "patches":
            return {"mean": mean}
        if self.form == "diagonal":
            return {"inputs": squares(rows), "mean": mean}
        if self._matrix is None:
            matrix: Any = matrix_for(self.op)
            self._matrix = torch.from_numpy(matrix).to(rows)
        # One row for each channel of a patch, over the positions of the kernel.
        channels = self.op.weight.shape[1]
        split = rows.permute(0, 2, 1).reshape(len(rows), channels, -1, rows.shape[1])
        beside = split.flatten(0, 1).permute(0, 2, 1)
        return {
            "inputs": product(rows, mixtures(rows, self._matrix)),
            "mean": mean,
            "squares": squares(rows),
            "taps": product(beside, beside) / channels,
        }

    def add_gradient(self, gradient: torch.Tensor) -> None:
        """Add the gradient at the output of one call."""
        op = self.op
        if isinstance(op, Embedding):
            rows = gradient.reshape(-1, 1, gradient.shape[-1])
        else:
            rows = patches.every_output(op, gradient)
        rows = working(rows)
        with self._lock:
            self.grads.add(rows if self.full else squares(rows))

    def check(self) -> None:
        """Check that the sums are finite.

        Raises:
            RankfoldError: they are not.
        """
        for what, total in (("inputs", self.sums), ("gradients", self.grads)):
            if not total.is_finite:
                raise moment_not_finite(self.path, what, "the data or the loss")

    def finish(self, store: ArrayStore) -> None:
        """Make of the sums what is read from now on."""
        self._inputs = input_moment(self.op, self.sums.mean, store)

    def moments(self, examples: int, draws: int) -> LayerMoments:
        """Return the moments, over all calls."""
        sums = self.sums
        return LayerMoments(
            self._inputs(),
            sums.mean("mean"),
            # None where nothing came back: the loss does not depend on the layer.
            None if self.grads.empty else self.grads.over(sums.positions * draws),
            samples=examples,
            positions_per_example=sums.positions / examples,
        )


def _after(
    gathering: _Gathering,
    layer: _Layer,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    x = args[0] if args else kwargs.get("input")
    # A call without positions adds nothing, and a count of zero would be divided by.
    if not isinstance(x, torch.Tensor) or not isinstance(output, torch.Tensor) or not x.numel():
        return output
    # Checkpointed blocks run forward again during the backward pass: that call is not another one.
    if gathering.forward:
        layer.add(brought(module, x), gathering)
    # No parameter takes a gradient, so the graph begins here: at the first layer on each way. A
    # zero that needs one joins it to the output and changes no value.
    if not output.requires_grad and torch.is_grad_enabled():
        output = output + torch.zeros((), device=output.device, requires_grad=True)
    if output.requires_grad:
        output.register_hook(partial(_backward, gathering, layer))
    return output


def _backward(gathering: _Gathering, layer: _Layer, gradient: torch.Tensor) -> None:
    # An exception in a hook would come out of autograd in another guise; it is kept and raised
    # after the pass. The first layer met on the way back is the nearest to the loss.
    if gathering.error is not None:
        return
    if not all_finite(gradient):
        gathering.error = gradient_not_finite(layer.path)
        return
    try:
        layer.add_gradient(gradient)
    except RankfoldError as error:  # the temporary file is full
        gathering.error = error


def _batch(
    model: nn.Module,
    calibration: Calibration,
    index: int,
    inputs: Any,
    draws: int,
    generators: losses.Generators,
    gathering: _Gathering,
) -> None:
    gathering.forward = True
    try:
        outputs = tracing.call(model, inputs)
    except RankfoldError:
        raise
    except Exception as error:  # whatever the model raises on these inputs
        let_through(error)
        raise failure(index, error, inputs, tracing.TENSORS) from error
    finally:
        gathering.forward = False
    count = examples(inputs)
    for draw in range(draws):
        if isinstance(calibration.loss, str):
            loss = losses.drawn(calibration.loss, outputs, count, generators)
            # No watched layer is in the graph of the outputs: there are no gradients.
            if not loss.requires_grad:
                return
        else:
            # A user's loss is a mean over the batch; the sum over its examples is what batches add
            # up by.
            loss = losses.loss_of(calibration, index, outputs) * count
            if not loss.requires_grad:
                raise RankfoldError(
                    f"loss {calibration.loss_name!r}: it does not depend on the outputs in a way "
                    "that can be differentiated; use torch operations and no .item() or .detach()"
                )
        try:
            # Several draws of labels share one forward pass; the last one frees the graph.
            loss.backward(retain_graph=draw + 1 < draws)  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever the backward pass of the model raises
            let_through(error)
            raise RankfoldError(
                f"calibration: the gradient of the loss on batch {index} fails with {told(error)}"
            ) from error
        if gathering.error is not None:
            raise gathering.error


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Let no parameter have a gradient inside."""
    trainable = [p for p in model.parameters() if p.requires_grad]

    def undo() -> None:
        for parameter in trainable:
            parameter.requires_grad_(True)

    with Restored(undo):
        for parameter in trainable:
            # Gradients are wanted at outputs of layers alone: none of a parameter is computed or
            # stored. Only those that had the flag get it back.
            parameter.requires_grad_(False)
        yield
