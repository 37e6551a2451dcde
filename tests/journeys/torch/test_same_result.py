"""Planned and carried out at once, later, on an executor or from a file: the same to the bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rankfold as rf

ORDER = 528  # large enough for subspaces to be sampled


def layers(method: str) -> nn.Sequential:
    torch.manual_seed(3)
    if method == "svd":
        model = nn.Sequential(nn.Linear(ORDER, ORDER), nn.ReLU(), nn.Linear(ORDER, ORDER + 8))
    else:
        model = nn.Sequential(nn.Conv2d(14, 22, 3), nn.ReLU(), nn.Conv2d(22, 18, 3))
    with torch.no_grad():
        for layer in model[::2]:
            weight = layer.weight
            decay = torch.linspace(0.0, 7.0, weight.shape[0]).exp().reciprocal()
            weight.mul_(decay.reshape(-1, *[1] * (weight.ndim - 1)) * 3.0)
    return model.eval()


def values(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


POLICIES: dict[str, rf.Policy] = {"energy": rf.Energy(0.7), "budget": rf.Budget(params=0.3)}
CASES = [(m, p) for m in ("svd", "channel_svd", "spatial_svd", "tucker2") for p in POLICIES]


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(("method", "policy"), [*CASES, ("cp", "energy")])
def test_every_way_to_the_same_model_gives_the_same_weights(
    method: str, policy: str, tmp_path: Path
) -> None:
    rule = POLICIES[policy]
    model = layers(method)
    at_once = rf.compress(model, rule, methods=(method,))
    plan = rf.plan(model, rule, methods=(method,))
    with ThreadPoolExecutor(2) as executor:
        elsewhere = rf.plan(model, rule, methods=(method,), executor=executor)
    assert elsewhere == plan
    later = rf.apply(model, rf.Plan.from_json(elsewhere.to_json()))
    assert later.plan.replaced
    assert values(later.model) == values(at_once.model)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    rf.compress_checkpoint(
        tmp_path / "model.safetensors", tmp_path / "out", rule, methods=(method,)
    )
    assert values(rf.load(layers(method), tmp_path / "out")) == values(at_once.model)
