"""A copy of a compressed model in training towards the outputs of the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rankfold.adapters.distils import LARGEST_GRADIENT, SMALLEST_SIZE
from rankfold.calibration.batches import Calibration, examples
from rankfold.calibration.losses import Divergence, fails_in_training, other_outputs
from rankfold.errors import RankfoldError
from rankfold.faults import let_through
from rankfold.state.restoration import Restored
from rankfold_torch import tracing
from rankfold_torch.calibration import losses
from rankfold_torch.model_state import unchanged
from rankfold_torch.offloading import check_not_offloaded
from rankfold_torch.surgery.copies import copied
from rankfold_torch.temporary_changes import recurrent_differentiable


@contextmanager
def student(model: nn.Module, small: nn.Module, held_out: Calibration) -> Iterator[TorchStudent]:
    """Train a copy of a compressed model within the context; see `Distils.student`."""
    with ExitStack() as stack:
        check_not_offloaded(small, "distil one that is not offloaded")
        # A caller's inference mode or no_grad would leave no graph to go back through.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        copy = _copied(small)
        stack.enter_context(unchanged(copy))
        # After `unchanged`, which puts back the modes that this one sets.
        stack.enter_context(recurrent_differentiable(copy))
        parameters = [p for p in copy.parameters() if p.is_floating_point()]
        if not parameters:
            raise RankfoldError("distil: the compressed model has no floating-point parameters")
        flags = [parameter.requires_grad for parameter in parameters]
        stack.enter_context(Restored(lambda: _set_flags(parameters, flags)))
        _set_flags(parameters, [True] * len(parameters))
        yield TorchStudent(model, copy, parameters, held_out)


class TorchStudent:
    """See `rankfold.adapters.distils.Student`."""

    def __init__(
        self,
        model: nn.Module,
        copy: nn.Module,
        parameters: Sequence[nn.Parameter],
        held_out: Calibration,
    ) -> None:
        self._model, self._copy, self._parameters = model, copy, parameters
        self._held_out = held_out
        self._targets = [
            losses.outputs_of(model, inputs, index) for index, inputs in enumerate(held_out.inputs)
        ]
        # In float32 at least: the last steps are smaller than bfloat16 can tell from none.
        self._masters = [
            p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for p in parameters
        ]
        self._sizes = [
            max(SMALLEST_SIZE, float(master.square().mean().sqrt())) for master in self._masters
        ]
        self._adam = self._begun()
        self.keep()

    def step(self, inputs: Any, rate: float) -> None:
        """Take one step of Adam on a batch."""
        count = examples(inputs)
        with _failing(count):
            target = losses.evaluated(self._model, inputs)
            outputs = tracing.call(self._copy, losses.cloned(inputs))
        loss = _distance(self._held_out.loss, target, outputs, count)
        with _failing(count):
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for master, gradient in zip(self._masters, gradients, strict=True):
            master.grad = None if gradient is None else gradient.to(master.dtype)
        nn.utils.clip_grad_norm_(self._masters, LARGEST_GRADIENT)
        for group, size in zip(self._adam.param_groups, self._sizes, strict=True):
            group["lr"] = rate * size
        self._adam.step()
        self._set(self._masters)

    def held_out_loss(self) -> float:
        """Return the loss on the held-out examples."""
        total = Divergence()
        for index, (inputs, target) in enumerate(
            zip(self._held_out.inputs, self._targets, strict=True)
        ):
            with torch.no_grad(), _failing(examples(inputs)):
                outputs = tracing.call(self._copy, losses.cloned(inputs))
            total.add(self._held_out, index, target, outputs, losses.READER)
        return total.value[1]

    def keep(self) -> None:
        """Note the parameters as they are now."""
        self._kept = [master.clone() for master in self._masters]

    def restore(self) -> None:
        """Go back to the parameters that were noted last, and forget the steps taken."""
        for master, value in zip(self._masters, self._kept, strict=True):
            master.copy_(value)
        self._adam = self._begun()
        self._set(self._masters)

    def kept(self) -> nn.Module:
        """Return the copy with the parameters that were noted last."""
        self._set(self._kept)
        return self._copy

    def _begun(self) -> torch.optim.Adam:
        # A group each, as each has a rate of its own.
        return torch.optim.Adam([{"params": [master]} for master in self._masters])

    @torch.no_grad()
    def _set(self, values: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)


def _copied(small: nn.Module) -> nn.Module:
    try:
        copy = copied(small, {})
    except RankfoldError as error:
        raise RankfoldError(
            f"distil: {error.__cause__ or error}: the compressed model cannot be copied"
        ) from error
    # A class may copy to the very same object; the user's model would be trained then.
    before = {id(parameter) for parameter in small.parameters()}
    for name, parameter in copy.named_parameters():
        if id(parameter) in before:
            raise RankfoldError(
                f"distil: parameter {name!r} of the compressed model cannot be copied; train the "
                "model in a loop of your own"
            )
    return copy


def _set_flags(parameters: Sequence[nn.Parameter], flags: Sequence[bool]) -> None:
    for parameter, flag in zip(parameters, flags, strict=True):
        parameter.requires_grad_(flag)


@contextmanager
def _failing(count: int) -> Iterator[None]:
    """Turn what a model raises on a batch into a `RankfoldError`."""
    try:
        yield
    except RankfoldError:
        raise
    except Exception as error:  # whatever the model raises on these inputs
        let_through(error)
        raise fails_in_training(count, error) from error


def _distance(
    loss: str | Callable[[Any, Any], Any], target: Any, outputs: Any, count: int
) -> torch.Tensor:
    """Return the loss of a step; see `Distils.student`."""
    if loss == "cross_entropy":
        first, second = losses.logits(target, count), losses.logits(outputs, count)
        if first.shape[1] == 1:  # one class is a sigmoid's
            first, second = (functional.pad(scores, (0, 1)) for scores in (first, second))
        return functional.kl_div(
            second.log_softmax(1), first.log_softmax(1), reduction="batchmean", log_target=True
        )
    pairs = list(zip(losses.floats(target), losses.floats(outputs), strict=True))
    terms, squares = [], []
    for first, second in pairs:
        if first.shape != second.shape:
            raise other_outputs(first.shape, second.shape)
        wide = torch.promote_types(first.dtype, torch.float32)
        finite = first.isfinite()
        apart = torch.where(finite, second.to(wide) - first.to(wide), 0.0)
        terms.append(apart.square().sum())
        squares.append(torch.where(finite, first, 0.0).to(wide).square().sum())
    # Outputs of a model over several devices lie on several.
    device = terms[0].device
    total = torch.stack([square.to(device) for square in squares]).sum()
    return torch.stack([term.to(device) for term in terms]).sum() / total.clamp_min(1e-30)
