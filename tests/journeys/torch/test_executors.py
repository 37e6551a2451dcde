"""Layers ranked and decomposed on executors, and where their arrays live."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold_torch.layers import stock as layers


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, groups=2),
        nn.ConvTranspose2d(24, 8, 3),
        nn.Flatten(),
        nn.Linear(8 * 9 * 9, 20),
    ).eval()


X = torch.randn(2, 3, 16, 16)
POLICIES = [rf.VBMF(weaken=0.2), rf.Energy(0.8), rf.Ratio(0.3), rf.Budget(macs=0.5), rf.Ranks(3)]


@pytest.fixture(scope="module", params=["threads", "processes"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "threads":
        with ThreadPoolExecutor(2) as pool:
            yield pool
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            yield pool


@cache
def without(policy: rf.Policy, methods: tuple[str, ...] | None) -> rf.Compressed:
    """What both executors are compared with."""
    return rf.compress(network(), policy, inputs=X, methods=methods)


@pytest.mark.parametrize(
    ("policy", "methods"),
    [*((policy, None) for policy in POLICIES), (rf.Ratio(0.3), ("svd", "cp"))],
    ids=repr,
)
def test_an_executor_changes_nothing(
    policy: rf.Policy, methods: tuple[str, ...] | None, executor: Executor
) -> None:
    alone = without(policy, methods)
    shared = rf.compress(network(), policy, inputs=X, methods=methods, executor=executor)
    assert shared.plan == alone.plan
    both = zip(alone.model.state_dict().items(), shared.model.state_dict().items(), strict=True)
    for (name, one), (other_name, other) in both:
        assert name == other_name
        assert torch.equal(one, other)


def test_budgets_with_data_use_it_too(executor: Executor) -> None:
    batches = [torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))]
    plans = [
        rf.compress(
            network(), rf.Budget(macs=0.4), inputs=X, calibration=batches, executor=given
        ).plan
        for given in (None, executor)
    ]
    assert plans[0] == plans[1]


def test_what_is_no_executor_is_named() -> None:
    with pytest.raises(rf.RankfoldError, match="executor: int"):
        rf.plan(network(), rf.VBMF(), executor=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "methods"),
    [
        *((policy, None) for policy in (*POLICIES, rf.Ranks("full"))),
        (rf.Ratio(0.3), ("svd", "cp")),
        (rf.Ranks("full"), ("svd", "cp3")),
    ],
    ids=repr,
)
def test_tensors_that_stay_where_they_are_are_decomposed_alike(
    policy: rf.Policy, methods: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    usual = without(policy, methods)
    monkeypatch.setattr(layers, "STAYING", ("cpu",))
    small = rf.compress(model, policy, inputs=X, methods=methods)
    for one, other in zip(usual.plan.layers, small.plan.layers, strict=True):
        assert (one.method, one.ranks, one.macs) == (other.method, other.ranks, other.macs)
        if one.error is not None and one.method not in ("cp", "cp3"):
            assert other.error == pytest.approx(one.error, abs=1e-6)
        elif one.error is not None:
            assert other.error == pytest.approx(one.error, rel=0.05, abs=1e-6)
    if methods is None:
        torch.testing.assert_close(small.model(X), usual.model(X), rtol=1e-4, atol=1e-4)


def test_no_weight_is_copied_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    monkeypatch.setattr(layers, "STAYING", ("cpu",))
    largest = 0

    def numpy(self: torch.Tensor, *args: object, **kwargs: object) -> object:
        nonlocal largest
        largest = max(largest, self.numel())
        return usual(self, *args, **kwargs)

    usual = torch.Tensor.__array__
    monkeypatch.setattr(torch.Tensor, "__array__", numpy)
    small = rf.compress(model, rf.Energy(0.8), inputs=X, include="*")
    assert len(small.plan.replaced) == 4
    assert 0 < largest <= 2 * 24 * 7 * 7  # probes and eigenvalues, not the 12960 of the last layer
