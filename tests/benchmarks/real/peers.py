"""Published ways of compressing with calibration data, as this benchmark re-implements them.

All of them replace a layer y = W x by two: to r channels with the kernel of the layer, and from
there to its outputs. Which r directions of the outputs are kept is where they differ:

* activation-aware whitening (SVD-LLM, Wang et al., 2403.07378; BALF, 2509.25136) takes the
  truncated SVD of W S with S Sᵀ = E[x xᵀ], patches x of a convolution, and multiplies by S⁻¹ again.
  That is U Uᵀ W with U the leading eigenvectors of W E[x xᵀ] Wᵀ = E[y yᵀ], outputs y without the
  bias; taken from the outputs it is the same at any width of a patch, and no moment is inverted.
* ASVD (2312.05821) scales each input channel by the root of its mean magnitude instead of S.

Ranks are those that leave each layer but the last, which gives the outputs, the same share of its
cost, as SVD-LLM and ASVD leave the head of a language model alone; or for BALF the most energy of
the whitened singular values, each layer's in units of its sum, by a Lagrangian relaxation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_ITERATIONS = 100
"""Bisections of a share or a multiplier: far more than float64 tells apart."""


class InfeasibleError(Exception):
    """No ranks keep within the budget."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration data tells of a layer.

    Attributes:
        outputs: E[y yᵀ] of the outputs without the bias, (out, out).
        magnitudes: E|x| of each input channel, (in,).
        positions: at which the layer is applied to one example.
    """

    outputs: np.ndarray
    magnitudes: np.ndarray
    positions: int


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that are factorised: linear ones and ungrouped convolutions, by path."""
    return {
        path: layer
        for path, layer in model.named_modules()
        if type(layer) in _LAYERS and getattr(layer, "groups", 1) == 1
    }


def multiply_accumulates(model: nn.Module, x: torch.Tensor) -> float:
    """Of all layers for one example x (1, ...); those that no way replaces are counted as well."""
    total = 0.0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.LSTMCell):
            total += len(output[0]) * (layer.weight_ih.numel() + layer.weight_hh.numel())
        else:
            total += layer.weight.numel() * (output.numel() / len(layer.weight))

    counted = (*_LAYERS, nn.LSTMCell)
    with _hooked([layer for layer in model.modules() if type(layer) in counted], count):
        model(x)
    return total


class _hooked:  # noqa: N801 - reads as a function
    """Forward hooks on layers, while one runs them without gradients."""

    def __init__(self, modules: Sequence[nn.Module], hook: Callable[..., None]) -> None:
        self._handles = [module.register_forward_hook(hook) for module in modules]
        self._without = torch.no_grad()

    def __enter__(self) -> None:
        self._without.__enter__()

    def __exit__(self, *error: object) -> None:
        self._without.__exit__(*error)
        for handle in self._handles:
            handle.remove()


def gather(model: nn.Module, batches: Sequence[torch.Tensor]) -> dict[str, Statistics]:
    """One pass over the batches for the statistics of all layers."""
    chosen = layers(model)
    paths = {layer: path for path, layer in chosen.items()}
    outputs = {path: np.zeros((len(layer.weight),) * 2) for path, layer in chosen.items()}
    sums = {path: np.zeros(layer.weight.shape[1]) for path, layer in chosen.items()}
    seen, read = dict.fromkeys(chosen, 0), dict.fromkeys(chosen, 0)

    def add(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        path = paths[layer]
        x, y = (_rows(layer, tensor) for tensor in (inputs[0], output))
        if layer.bias is not None:
            y = y - layer.bias
        outputs[path] += (y.T @ y).double().numpy()
        sums[path] += x.abs().sum(0).double().numpy()
        seen[path] += len(y)
        read[path] += len(x)

    with _hooked(list(chosen.values()), add):
        for batch in batches:
            model(batch)
    examples = sum(map(len, batches))
    return {
        path: Statistics(
            outputs[path] / seen[path], sums[path] / read[path], seen[path] // examples
        )
        for path in chosen
    }


def _rows(layer: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """The channels (positions, channels) of a layer's input or output."""
    channels = tensor if isinstance(layer, nn.Linear) else tensor.movedim(1, -1)
    return channels.reshape(-1, channels.shape[-1])


def unfolded(layer: nn.Module) -> np.ndarray:
    """The weight as a matrix (out, in · kernel), in float64."""
    return layer.weight.detach().double().flatten(1).numpy()


def scaled_gram(layer: nn.Module, magnitudes: np.ndarray) -> np.ndarray:
    """W S² Wᵀ of ASVD, S² the mean magnitudes of the input channels."""
    weight = layer.weight.detach().double().flatten(2) if layer.weight.dim() > 2 else None
    if weight is None:
        weight = layer.weight.detach().double()[..., None]
    scaled = weight.numpy() * np.sqrt(np.maximum(magnitudes, 1e-6))[:, None]
    matrix = scaled.reshape(len(scaled), -1)
    return matrix @ matrix.T


def factorised(layer: nn.Module, basis: np.ndarray) -> nn.Module:
    """The layer with its outputs projected on a basis (out, rank), as two layers."""
    weight = unfolded(layer)
    rank = basis.shape[1]
    first = torch.from_numpy(basis.T @ weight).float()
    last = torch.from_numpy(np.ascontiguousarray(basis)).float()
    if isinstance(layer, nn.Linear):
        stages: list[nn.Module] = [
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=layer.bias is not None),
        ]
    else:
        kind = type(layer)
        stages = [
            kind(
                layer.in_channels,
                rank,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                bias=False,
            ),
            kind(rank, layer.out_channels, 1, bias=layer.bias is not None),
        ]
    with torch.no_grad():
        for stage, matrix in zip(stages, (first, last), strict=True):
            stage.weight.copy_(matrix.reshape(stage.weight.shape))
        if layer.bias is not None:
            stages[1].bias.copy_(layer.bias)
    return nn.Sequential(*stages)


@dataclass(frozen=True, eq=False)
class Costs:
    """Multiply-accumulates of the layers that are factorised, and of all others.

    Attributes:
        shapes: (out, in · kernel) of each.
        positions: of each.
        others: of what stays as it is.
    """

    shapes: Mapping[str, tuple[int, int]]
    positions: Mapping[str, int]
    others: float

    def dense(self, path: str) -> int:
        """Of a layer as it is."""
        out, into = self.shapes[path]
        return self.positions[path] * out * into

    def at(self, path: str, rank: int) -> int:
        """Of a layer at a rank; as it is where that is no dearer."""
        return min(self.positions[path] * rank * sum(self.shapes[path]), self.dense(path))

    def total(self, ranks: Mapping[str, int]) -> float:
        """Of the whole model."""
        return self.others + sum(self.at(path, rank) for path, rank in ranks.items())

    @property
    def original(self) -> float:
        """Of the whole model as it is."""
        return self.others + sum(map(self.dense, self.shapes))


def costs_of(model: nn.Module, statistics: Mapping[str, Statistics], total: float) -> Costs:
    """The costs of a model whose multiply-accumulates are known."""
    shapes = {path: unfolded(layer).shape for path, layer in layers(model).items()}
    positions = {path: statistics[path].positions for path in shapes}
    bare = Costs(shapes, positions, 0.0)
    return Costs(shapes, positions, total - bare.original)


def uniform(costs: Costs, share: float) -> dict[str, int]:
    """Ranks that leave each layer but the last the same share of its cost, the most allowed.

    Raises:
        InfeasibleError: rank 1 everywhere is too dear.
    """

    *paths, last = costs.shapes

    def ranks(kept: float) -> dict[str, int]:
        ranks = {last: min(costs.shapes[last])}
        for path in paths:
            out, into = costs.shapes[path]
            fewer = max(1, int(kept * out * into / (out + into)))
            ranks[path] = fewer if kept < 1 else min(out, into)
        return ranks

    return _bisected(ranks, costs, share * costs.original)


def most_energy(costs: Costs, energies: Mapping[str, np.ndarray], share: float) -> dict[str, int]:
    """BALF's ranks: the most energy, each layer's as a share of its sum, by a price of costs.

    Args:
        costs: of the model.
        energies: squared whitened singular values of each layer, descending.
        share: of the multiply-accumulates.

    Raises:
        InfeasibleError: rank 1 everywhere is too dear.
    """
    kept = {path: np.cumsum(values) / values.sum() for path, values in energies.items()}
    prices = {
        path: np.array([costs.at(path, rank) for rank in range(1, len(sums) + 1)]) / costs.original
        for path, sums in kept.items()
    }

    def ranks(value: float) -> dict[str, int]:
        # value: of cost, a multiplier between 0 and infinity, as a number from 1 down to 0.
        price = (1.0 - value) / max(value, 1e-12)
        return {
            path: 1 + int(np.argmax(sums - price * prices[path])) for path, sums in kept.items()
        }

    return _bisected(ranks, costs, share * costs.original)


def _bisected(
    ranks: Callable[[float], dict[str, int]], costs: Costs, budget: float
) -> dict[str, int]:
    """The ranks at the largest argument from 0 to 1 that keep within a budget."""
    low, high = 0.0, 1.0
    if costs.total(ranks(high)) <= budget:
        return ranks(high)
    if costs.total(ranks(low)) > budget:
        raise InfeasibleError
    for _ in range(_ITERATIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if costs.total(ranks(middle)) <= budget else (low, middle)
    return ranks(low)


def compressed(
    model: nn.Module, costs: Costs, grams: Mapping[str, np.ndarray], ranks: Mapping[str, int]
) -> nn.Module:
    """A copy of the model, each layer projected on leading eigenvectors where that is cheaper."""
    small = copy.deepcopy(model)
    for path, layer in layers(small).items():
        if costs.at(path, ranks[path]) < costs.dense(path):
            _, vectors = np.linalg.eigh(grams[path])
            small.set_submodule(path, factorised(layer, vectors[:, ::-1][:, : ranks[path]]))
    return small


def energies(layer: nn.Module, gram: np.ndarray) -> np.ndarray:
    """Squared singular values of a whitened layer, descending, as many as its rank can be."""
    values = np.linalg.eigvalsh(gram)[::-1]
    return np.maximum(values[: min(unfolded(layer).shape)], 0.0)
