"""`Budget` on PyTorch models: never exceeded, and honest where it cannot be kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 40, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(40, 40, 3, groups=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(160, 70),
        nn.ReLU(),
        nn.Linear(70, 10),
    )


X = torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(1))
METHODS = ("svd", "tucker2", "spatial_svd", "channel_svd")


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(
    ("limits", "methods"),
    [
        ({"params": 0.7}, None),
        ({"params": 0.3}, None),
        ({"macs": 0.5}, ("svd", "tucker2")),
        ({"macs": 0.2}, None),
        ({"params": 0.5, "macs": 0.3}, (*METHODS, "cp")),
        ({"params": 0.5, "multiple_of": 8}, None),
        ({"params": 1.0}, None),
    ],
)
def test_no_limit_is_exceeded(limits: dict[str, Any], methods: tuple[str, ...] | None) -> None:
    model = network()
    small = rf.compress(model, rf.Budget(**limits), inputs=X, methods=methods)
    assert size(small.model) <= limits.get("params", 1.0) * size(model)
    assert small.plan.model_params == (size(model), size(small.model))
    assert small.plan.macs is not None
    before, after = small.plan.macs
    assert after <= limits.get("macs", 1.0) * before


def test_a_larger_budget_is_used() -> None:
    model = network()
    sizes = [size(rf.compress(model, rf.Budget(params=s)).model) for s in (0.3, 0.5, 0.8)]
    assert [s > 0.93 * share * size(model) for s, share in zip(sizes, (0.3, 0.5, 0.8), strict=True)]
    assert sizes == sorted(sizes)


def test_ranks_are_multiples_where_there_is_room() -> None:
    plan = rf.plan(network(), rf.Budget(macs=0.4, multiple_of=8), inputs=X)
    ranks = [rank for layer in plan.replaced for rank in layer.ranks]
    assert ranks
    assert all(rank % 8 == 0 for rank in ranks)


def test_what_is_excluded_counts() -> None:
    model = network()
    small = rf.compress(model, rf.Budget(params=0.6), exclude="9")
    assert size(small.model) <= 0.6 * size(model)
    assert small.plan["9"].reason == "excluded by '9'"


def test_overrides_count() -> None:
    model = network()
    small = rf.compress(model, rf.Budget(params=0.6), overrides={"9": rf.Ranks("full")})
    assert small.plan["9"].params is not None
    assert small.plan["9"].params[1] > small.plan["9"].params[0]
    assert size(small.model) <= 0.6 * size(model)


def test_an_infeasible_budget_names_the_least_feasible_one() -> None:
    model = network()
    with pytest.raises(rf.RankfoldError, match=r"the smallest that can is params=0\.\d+") as error:
        rf.plan(model, rf.Budget(params=0.001))
    least = float(str(error.value).rsplit("params=", 1)[1])
    assert size(rf.compress(model, rf.Budget(params=least)).model) <= least * size(model)
    with pytest.raises(rf.RankfoldError, match="the smallest that can"):
        rf.plan(model, rf.Budget(params=least - 0.002))


def test_the_cheapest_model_within_an_error() -> None:
    model = network()
    macs = []
    for error in (0.1, 0.4, 0.8):
        plan = rf.plan(model, rf.Budget(error=error), inputs=X)
        assert plan.macs is not None
        macs.append(plan.macs[1])
    assert macs[0] > macs[1] > macs[2]


def test_the_cheapest_model_within_a_drop_of_the_score() -> None:
    model = network()
    seen: list[float] = []

    def score(candidate: nn.Module) -> float:
        with torch.no_grad():
            seen.append(-float((candidate(X) - model(X)).norm() / model(X).norm()))
        return seen[-1]

    small = rf.compress(model, rf.Budget(drop=0.3, evaluate=score), inputs=X)
    assert score(small.model) >= -0.3
    assert len(small.plan.trials) <= 10
    assert small.plan.trials[0].share == 1.0
    kept = [trial.share for trial in small.plan.trials if trial.kept]
    assert small.plan.macs is not None
    assert small.plan.macs[1] <= min(kept) * small.plan.macs[0]


def test_a_layer_whose_replacement_fails_does_not_break_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rankfold.errors import Refused
    from rankfold_torch.adapter import TorchAdapter

    build = TorchAdapter.build

    def failing(self: TorchAdapter, model: nn.Module, path: str, chain: Any) -> nn.Module:
        if path == "9":
            raise Refused("cannot be built")
        return build(self, model, path, chain)

    monkeypatch.setattr(TorchAdapter, "build", failing)
    model = network()
    small = rf.compress(model, rf.Budget(params=0.75))
    assert size(small.model) <= 0.75 * size(model)
    assert small.plan["9"].reason == "cannot be built"


def test_macs_need_inputs() -> None:
    with pytest.raises(rf.RankfoldError, match="pass inputs="):
        rf.plan(network(), rf.Budget(macs=0.5))


def test_plan_refuses_to_try_out() -> None:
    with pytest.raises(rf.RankfoldError, match=r"rankfold\.compress"):
        rf.plan(network(), rf.Budget(drop=0.1, evaluate=lambda model: 1.0))


def test_times_are_predicted_and_measured() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 768), nn.ReLU(), nn.Linear(768, 512))
    small = rf.compress(model, rf.Budget(latency=0.6), inputs=torch.randn(64, 512))
    assert small.plan.predicted_latency is not None
    assert small.plan.predicted_latency <= 0.6
    assert small.plan.latency is not None
    assert f"measured {small.plan.latency:.1%}" in small.report()


def slow_by(factor: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Layers take as long as their parameters, models `factor` times that; gives what is asked."""
    from rankfold.ops import params
    from rankfold_torch.adapter import TorchAdapter

    shares: list[float] = []

    def seconds(self: TorchAdapter, m: Any, path: str, chains: Any, e: Any) -> tuple[float, ...]:
        return tuple(float(params(chain)) for chain in ((self.read(m, path),), *chains))

    def whole(self: TorchAdapter, models: Any, inputs: Any) -> tuple[float, ...]:
        times = tuple(float(size(m)) for m in models)
        if len(times) == 1:
            return times
        shares.append(factor * times[1] / times[0])
        return times[0], factor * times[1]

    monkeypatch.setattr(TorchAdapter, "seconds", seconds)
    monkeypatch.setattr(TorchAdapter, "model_seconds", whole)
    return shares


@pytest.mark.parametrize("inplace", [False, True])
def test_a_limit_on_time_that_is_missed_is_tightened(
    monkeypatch: pytest.MonkeyPatch, inplace: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(500, 900), nn.ReLU(), nn.Linear(900, 500))
    before = size(model)
    shares = slow_by(1.2, monkeypatch)
    budget = rf.Budget(latency=0.5)
    small = rf.compress(model, budget, inputs=torch.randn(2, 500), inplace=inplace)
    assert shares[0] > 0.5 >= shares[-1]
    assert small.plan.latency == shares[-1]
    assert 1.2 * size(small.model) <= 0.5 * before
    assert small.plan.policy == repr(budget)
    assert (small.model is model) == inplace


def test_a_limit_on_time_that_cannot_be_met_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(500, 900), nn.ReLU(), nn.Linear(900, 500))
    shares = slow_by(30.0, monkeypatch)
    small = rf.compress(model, rf.Budget(latency=0.5), inputs=torch.randn(2, 500))
    assert small.plan.latency == min(shares)
    assert "above the budget" in small.report()


class ReadOutside(nn.Module):
    """A large layer that cannot be read, as its owner reads the weight, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.held = nn.Linear(60, 50)
        self.free = nn.Linear(50, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.free(self.held(x) + self.held.weight.sum())


def test_layers_that_cannot_be_read_count() -> None:
    model = ReadOutside()
    x = torch.randn(3, 60)
    plan = rf.plan(model, rf.Budget(macs=0.8), inputs=x)
    assert plan["held"].method is None
    assert plan["held"].macs == (3 * 60 * 50,) * 2
    assert plan.macs is not None
    assert plan.macs[0] == 3 * (60 * 50 + 50 * 40)
    assert plan.macs[1] <= 0.8 * plan.macs[0]


def test_a_budget_with_nothing_to_choose_is_checked() -> None:
    with pytest.raises(rf.RankfoldError, match=r"the smallest that can is macs=1\.0"):
        rf.plan(network(), rf.Budget(macs=0.5), inputs=X, exclude="*")
    assert not rf.plan(network(), rf.Budget(macs=1.0), inputs=X, exclude="*").replaced


def test_moments_of_another_model_are_named() -> None:
    batches = [torch.randn(20, 3, 20, 20)]
    moments = rf.gather(network(), batches, inputs=X)
    with pytest.raises(rf.RankfoldError, match="moments: of 0, 3, 5"):
        rf.plan(nn.ModuleDict({"a": nn.Linear(3, 3)}), rf.Ratio(0.5), moments=moments)
    model = network()
    model[3] = nn.Conv2d(25, 40, 3)
    with pytest.raises(rf.RankfoldError, match=r"moments: layer '3': .* gather them"):
        rf.plan(model, rf.Ratio(0.5), moments=moments)
