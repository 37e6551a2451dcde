"""The ways of compressing that are compared, at an equal share of the multiply-accumulates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tests.benchmarks.real import peers
from torch import nn

import rankfold as rf

_CLASSICAL = ("svd", "tucker2")


@dataclass(eq=False)
class Task:
    """A network to compress with one draw of calibration data.

    What several ways or shares need is gathered once; its CPU time is added to each that uses it.

    Attributes:
        model: the network.
        x: one example of its inputs, (1, ...).
        batches: of calibration data.
    """

    model: nn.Module
    x: torch.Tensor
    batches: Sequence[torch.Tensor]
    _gathered: dict[str, tuple[Any, float]] = field(default_factory=dict)
    spent: float = 0.0

    def gathered(self, name: str, gather: Callable[[], Any]) -> Any:
        """What `gather` returns, called the first time only; counts its time every time."""
        if name not in self._gathered:
            began = time.process_time()
            self._gathered[name] = (gather(), time.process_time() - began)
            self.spent -= self._gathered[name][1]  # the caller's clock counts it, too
        result, seconds = self._gathered[name]
        self.spent += seconds
        return result

    @property
    def moments(self) -> rf.Moments:
        """Of rankfold."""
        return self.gathered("moments", lambda: rf.gather(self.model, self.batches, inputs=self.x))

    @property
    def statistics(self) -> dict[str, peers.Statistics]:
        """Of the peers."""
        return self.gathered("statistics", lambda: peers.gather(self.model, self.batches))


Way = Callable[[Task, float], nn.Module]


def _weights(task: Task, share: float) -> nn.Module:
    return rf.compress(task.model, rf.Budget(macs=share), inputs=task.x).model


def _calibrated(refit: bool) -> Way:
    def way(task: Task, share: float) -> nn.Module:
        return rf.compress(
            task.model,
            rf.Budget(macs=share),
            inputs=task.x,
            calibration=task.batches,
            moments=task.moments,
            refit=refit,
        ).model

    return way


def _uniform(task: Task, share: float) -> nn.Module:
    """The largest share of the channels, the same in every layer, that keeps within the MACs."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = 0.5 * (low + high)
        plan = rf.plan(task.model, rf.Ratio(middle), inputs=task.x, methods=_CLASSICAL)
        before, after = plan.macs or (1, 1)
        low, high = (middle, high) if after <= share * before else (low, middle)
    if low == 0.0:
        raise peers.InfeasibleError
    policy = rf.Ratio(low)
    return rf.compress(task.model, policy, inputs=task.x, methods=_CLASSICAL).model


def _peer(gram: Callable[[nn.Module, peers.Statistics], np.ndarray], budgeted: bool = False) -> Way:
    def way(task: Task, share: float) -> nn.Module:
        statistics = task.statistics
        total = peers.multiply_accumulates(task.model, task.x)
        costs = peers.costs_of(task.model, statistics, total)
        layers = peers.layers(task.model)
        grams = {path: gram(layer, statistics[path]) for path, layer in layers.items()}
        if budgeted:
            energies = {path: peers.energies(layers[path], grams[path]) for path in layers}
            ranks = peers.most_energy(costs, energies, share)
        else:
            ranks = peers.uniform(costs, share)
        return peers.compressed(task.model, costs, grams, ranks)

    return way


def _evbmf(task: Task, share: float) -> nn.Module:
    return rf.compress(task.model, rf.VBMF(), inputs=task.x, methods=_CLASSICAL).model


def _whitened(layer: nn.Module, statistics: peers.Statistics) -> np.ndarray:
    return statistics.outputs


def _scaled(layer: nn.Module, statistics: peers.Statistics) -> np.ndarray:
    return peers.scaled_gram(layer, statistics.magnitudes)


REFITTED, CALIBRATED, WEIGHTS, BALF, EVBMF = (
    "rankfold, refitted",
    "rankfold, calibrated",
    "rankfold, weights alone",
    "BALF",
    "EVBMF ranks",
)
WAYS: Mapping[str, Way] = {
    REFITTED: _calibrated(refit=True),
    CALIBRATED: _calibrated(refit=False),
    WEIGHTS: _weights,
    BALF: _peer(_whitened, budgeted=True),
    "SVD-LLM": _peer(_whitened),
    "ASVD": _peer(_scaled),
    "uniform ratio": _uniform,
    EVBMF: _evbmf,
}
BLIND = (WEIGHTS, "uniform ratio", EVBMF)
"""Those that see no data, and so have no draws of it."""
