"""Losses on the outputs of a model, and the distance of two models in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from rankfold.calibration import losses
from rankfold.calibration.batches import Calibration
from rankfold.errors import RankfoldError
from rankfold.faults import let_through
from rankfold.linalg import Array
from rankfold.state.restoration import settled
from rankfold_torch import tracing
from rankfold_torch.model_state import parameters_kept, unchanged

# (batch, classes, height, width), and with a depth: outputs of segmentation.
_IMAGE_AXES = (4, 5)
# Names under which models return their state for the next call, which is no output.
_CACHES = ("past_key_values", "mems")


class Generators:
    """One random generator per device, seeded from a NumPy generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._seed = int(rng.integers(2**62))
        self._by_device: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator:
        """Return the generator of a device."""
        if device not in self._by_device:
            self._by_device[device] = torch.Generator(device).manual_seed(self._seed)
        return self._by_device[device]


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested mappings, sequences and dataclasses, but for those of caches."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in _CACHES:
                yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value):
        yield from tensors({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})


def cloned(inputs: Any) -> Any:
    """Return inputs with tensors of their own, which a model may write to, without history."""
    if isinstance(inputs, torch.Tensor):
        return inputs.detach().clone()
    # By exact type: a named tuple or a class of the user's is built in another way, and is passed
    # on.
    if type(inputs) in (tuple, list):
        return type(inputs)(map(cloned, inputs))
    if type(inputs) is dict:
        return {name: cloned(item) for name, item in inputs.items()}
    return inputs


def floats(outputs: Any) -> list[torch.Tensor]:
    """Return the floating-point tensors of an output.

    Raises:
        RankfoldError: there is none.
    """
    floating = [t for t in tensors(outputs) if t.is_floating_point()]
    if not floating:
        raise losses.no_floats(outputs, "tensors")
    return floating


def logits(outputs: Any, count: int) -> torch.Tensor:
    """Return the logits of a classifier, in float32 or float64: (predictions, classes).

    Args:
        outputs: a tensor, something with `.logits` or an entry "logits", or a sequence with them at
            its beginning. The classes are on the last axis, of images on axis 1.
        count: the number of examples; a vector of that length has one logit each.

    Raises:
        RankfoldError: there are no logits.
    """
    scores = losses.logits_in(outputs)
    if not isinstance(scores, torch.Tensor) or not scores.is_floating_point() or scores.ndim == 0:
        raise losses.no_logits(outputs)
    if scores.ndim == 1 and len(scores) == count:
        scores = scores[:, None]
    if scores.ndim in _IMAGE_AXES:
        scores = scores.movedim(1, -1)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return scores.reshape(-1, scores.shape[-1])


def drawn(name: str, outputs: Any, count: int, generators: Generators) -> torch.Tensor:
    """Draw a random loss once, summed over the examples.

    Args:
        name: "cross_entropy" or "outputs".
        outputs: of the model.
        count: the number of examples.
        generators: draw.

    Raises:
        RankfoldError: the outputs do not suit the loss.
    """
    if name == "outputs":
        # The gradient of noise · output is the noise: its second moment is the identity in
        # expectation, so that all directions of the output count alike.
        terms = [(t.float() * _noise(t, generators)).sum() for t in floats(outputs)]
        # Outputs of a model over several devices lie on several.
        return torch.stack([term.to(terms[0].device) for term in terms]).sum()
    scores = logits(outputs, count)
    if torch.isnan(scores).any():
        raise RankfoldError("loss 'cross_entropy': the logits have NaN values; check the inputs")
    generator = generators.on(scores.device)
    if scores.shape[1] == 1:
        # One logit: labels drawn from the model's own prediction, as with classes below. The
        # expectation of the gradient's second moment is then the Fisher information.
        chance = torch.rand(scores.shape, generator=generator, device=scores.device)
        labels = (chance < scores.detach().sigmoid()).to(scores.dtype)
        return functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
    shares = scores.detach().softmax(1)
    # Drawn from detached shares: the draw is no function of the model that a gradient goes through.
    picked = torch.multinomial(shares, 1, generator=generator)
    return -scores.log_softmax(1).gather(1, picked).sum()


def loss_of(calibration: Calibration, index: int, outputs: Any) -> torch.Tensor:
    """Return the value of a user's loss function for a batch.

    Raises:
        RankfoldError: it fails or gives something else than a tensor of one element.
    """
    name = calibration.loss_name
    value = losses.loss_of(calibration, index, outputs, calibration.batches[index])
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        what = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value)
        raise RankfoldError(f"loss {name!r} gave {what}; return a tensor with one element")
    return value.reshape(())


@settled
def divergence(model: nn.Module, small: nn.Module, calibration: Calibration) -> tuple[float, float]:
    """Return the mean losses of the model and of the compressed one (`Calibrates.divergence`)."""
    total = losses.Divergence()
    for index, inputs in enumerate(calibration.inputs):
        first, second = (outputs_of(m, inputs, index) for m in (model, small))
        total.add(calibration, index, first, second, READER)
    return total.value


def _array(x: torch.Tensor) -> Array:
    # In float64 only where it is added up, a part at a time.
    array: Array = (x if x.dtype == torch.float64 else x.float()).cpu().numpy()
    return array


@torch.no_grad()
def _loss_value(calibration: Calibration, index: int, outputs: Any) -> float:
    return float(loss_of(calibration, index, outputs))


READER = losses.OutputReader(
    logits=lambda outputs, count: _array(logits(outputs, count)),
    floats=lambda outputs: map(_array, floats(outputs)),
    loss=_loss_value,
)


def _noise(like: torch.Tensor, generators: Generators) -> torch.Tensor:
    return torch.randn(like.shape, generator=generators.on(like.device), device=like.device)


def outputs_of(model: nn.Module, inputs: Any, index: int) -> Any:
    """Return the outputs of a model in eval mode, which is left as it was, for a batch.

    Raises:
        RankfoldError: the model fails on the batch of that index.
    """
    try:
        return evaluated(model, inputs)
    except Exception as error:  # whatever the model raises on these inputs
        let_through(error)
        raise losses.failure(index, error, inputs, tracing.TENSORS) from error


def evaluated(model: nn.Module, inputs: Any) -> Any:
    """Return the outputs of a model in eval mode, which is left as it was."""
    with unchanged(model), parameters_kept(model), torch.no_grad():
        return tracing.call(model, cloned(inputs))
