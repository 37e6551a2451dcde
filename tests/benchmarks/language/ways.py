"""The ways of compressing that are compared, at an equal share of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from tests.benchmarks.language import network
from tests.benchmarks.real import peers
from torch import nn

import rankfold as rf

_LOSS = "cross_entropy"
_HALVINGS = 12


@dataclass(frozen=True, eq=False)
class Task:
    """A language model with calibration data.

    Attributes:
        model: the model.
        batches: of tokens, (n, context).
    """

    model: nn.Module
    batches: Sequence[torch.Tensor]

    @property
    def x(self) -> torch.Tensor:
        """One example."""
        return self.batches[0][:1]

    @cached_property
    def moments(self) -> rf.Moments:
        """Of rankfold."""
        return rf.gather(self.model, self.batches, inputs=self.x, loss=_LOSS)

    @cached_property
    def joint(self) -> Task:
        """The same with one layer for q, k and v."""
        return Task(network.joint(self.model), self.batches)

    @cached_property
    def statistics(self) -> dict[str, peers.Statistics]:
        """Of the peers; each layer weighs what it has in parameters, not in positions."""
        gathered = peers.gather(self.model, self.batches)
        return {path: replace(item, positions=1) for path, item in gathered.items()}


Way = Callable[[Task, float], nn.Module]


def size(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def _budget(*, informed: bool, methods: tuple[str, ...] | None = None) -> Way:
    def way(task: Task, share: float) -> nn.Module:
        budget = rf.Budget(params=share)
        if not informed:
            return rf.compress(task.model, budget, methods=methods).model
        return rf.compress(
            task.model,
            budget,
            inputs=task.x,
            methods=methods,
            calibration=task.batches,
            moments=task.moments,
            loss=_LOSS,
        ).model

    return way


_refitted = _budget(informed=True)


def _kronecker_uniform(task: Task, share: float) -> nn.Module:
    """One ratio everywhere, factors weighted by the moments of inputs and of gradients."""
    low, high = 0.0, 1.0
    target = share * size(task.model)

    def left(ratio: float) -> int:
        plan = rf.plan(
            task.model, rf.Ratio(ratio), methods=("svd",), exclude="head", moments=task.moments
        )
        before, after = plan.params
        return size(task.model) - before + after

    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if left(middle) <= target else (low, middle)
    return rf.compress(
        task.model, rf.Ratio(low), methods=("svd",), exclude="head", moments=task.moments
    ).model


def _costs(task: Task) -> peers.Costs:
    return peers.costs_of(task.model, task.statistics, size(task.model))


def _svd_llm(task: Task, share: float) -> nn.Module:
    costs = _costs(task)
    grams = {path: item.outputs for path, item in task.statistics.items()}
    return peers.compressed(task.model, costs, grams, peers.uniform(costs, share))


def _balf(task: Task, share: float) -> nn.Module:
    costs = _costs(task)
    layers = peers.layers(task.model)
    grams = {path: item.outputs for path, item in task.statistics.items()}
    energies: dict[str, np.ndarray] = {
        path: peers.energies(layers[path], gram) for path, gram in grams.items()
    }
    ranks = peers.most_energy(costs, energies, share)
    return peers.compressed(task.model, costs, grams, ranks)


WAYS: dict[str, Way] = {
    "rankfold, refitted": _refitted,
    "rankfold, refitted, plain SVD": _budget(informed=True, methods=("svd",)),
    "rankfold, refitted, q, k, v as one": lambda task, share: _refitted(task.joint, share),
    "rankfold, weights alone": _budget(informed=False),
    "KFAC-SVD, uniform ratio": _kronecker_uniform,
    "BALF": _balf,
    "SVD-LLM": _svd_llm,
}
