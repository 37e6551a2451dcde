"""CP stages that can be fine-tuned at rates at which those of plain least squares diverge."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tensorly.decomposition import parafac
from torch import nn
from torch.nn import functional

import rankfold as rf
from rankfold.decompose.cp import CP4
from rankfold.decompose.cp_als import MOST_SENSITIVE
from rankfold.decompose.tensor_algebra import balance, relative_sensitivity
from rankfold_torch.layers import stock as layers

RANK, RATE = 40, 0.1


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> float:
    """Trains on the first digits; gives the highest loss of a batch."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:1400, None] / 16
    y = torch.tensor(digits.target)[:1400]
    generator = torch.Generator().manual_seed(0)
    highest = 0.0
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            highest = max(highest, loss.item())
    return highest


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    trained(made, torch.optim.Adam(made.parameters(), 3e-3), epochs=4)
    return made


def tuned(model: nn.Module) -> float:
    made = copy.deepcopy(model)
    return trained(made, torch.optim.SGD(made.parameters(), RATE, momentum=0.9), epochs=1)


def test_a_rate_that_plain_factors_cannot_stand(model: nn.Module) -> None:
    small = rf.compress(model, rf.Ranks({"2": RANK}), methods="cp")
    found = small.plan["2"]
    assert found.sensitivity is not None
    assert found.sensitivity < MOST_SENSITIVE
    assert f"sensitivity {found.sensitivity:.3g}" in " ".join(small.report().split())

    assert isinstance(model[2], nn.Conv2d)
    weight = model[2].weight.detach().double().numpy()
    energy = float(np.vdot(weight, weight))
    scales, factors = parafac(
        weight, RANK, n_iter_max=1000, init="random", random_state=1, tol=1e-12
    )
    plain = balance([factors[0] * scales, *factors[1:]])
    assert relative_sensitivity(plain, energy) > 3 * MOST_SENSITIVE
    op = layers.read(model[2])
    chain = CP4._chain(op, [factor.astype(np.float32)[None] for factor in plain])
    usual = copy.deepcopy(model)
    usual[2] = layers.build(chain, model[2])

    assert found.error is not None
    assert found.error <= np.linalg.norm(weight - dense(plain)) / np.sqrt(energy)
    assert tuned(small.model) < 3.0
    assert not tuned(usual) < 100.0


def dense(factors: tuple[np.ndarray, ...]) -> np.ndarray:
    whole: np.ndarray = np.einsum("or,ir,hr,wr->oihw", *factors)
    return whole
