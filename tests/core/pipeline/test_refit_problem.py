"""The stages after the first are refitted on what the first one gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.core.pipeline.test_refit import Case, joint, moments_of

from rankfold.calibration.weighted_norm import Metric, rows_of
from rankfold.errors import Refused
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings, Usage
from rankfold.ops import Chain, Conv, ConvTranspose, Linear, Op, with_weight
from rankfold.ops.reference import reconstruct
from rankfold.pipeline import refit_problem
from rankfold.pipeline.refit_problem import LaterStages, WholeLayer, first_basis
from rankfold.pipeline.ridge_regression import OnSums, error_of_nothing
from rankfold.plugins.registry import registry

RNG = np.random.default_rng(8)
ROWS = 300
CASES: dict[str, tuple[Op, str, tuple[int, ...]]] = {
    "svd": (Linear(RNG.standard_normal((9, 14)), RNG.standard_normal(9)), "svd", (4,)),
    "without bias": (Linear(RNG.standard_normal((9, 14))), "svd", (4,)),
    "channel": (
        Conv(RNG.standard_normal((8, 3, 3, 2)), RNG.standard_normal(8)),
        "channel_svd",
        (3,),
    ),
    "spatial": (
        Conv(RNG.standard_normal((8, 3, 2, 3)), RNG.standard_normal(8)),
        "spatial_svd",
        (4,),
    ),
    "grouped spatial": (Conv(RNG.standard_normal((8, 3, 3, 3)), groups=2), "spatial_svd", (3,)),
    "tucker2": (Conv(RNG.standard_normal((7, 6, 3, 3)), RNG.standard_normal(7)), "tucker2", (7, 3)),
    "grouped tucker2": (
        Conv(RNG.standard_normal((8, 5, 3)), RNG.standard_normal(8), groups=2),
        "tucker2",
        (4, 2),
    ),
    "transposed": (ConvTranspose(RNG.standard_normal((7, 6, 2, 3))), "tucker2", (7, 2)),
}


class Setting:
    """A layer, its chain, and rows of inputs that differ from those it was decomposed for."""

    def __init__(self, name: str, ranks: tuple[int, ...] | None = None) -> None:
        self.op, method, stated = CASES[name]
        rows = rows_of(self.op)
        groups, _, width = rows.shape
        rng = np.random.default_rng(0)
        mixed = rng.standard_normal((groups, width, width)) * np.geomspace(1, 0.1, width)
        self.x = np.einsum("ngi,gij->ngj", rng.standard_normal((ROWS, groups, width)), mixed) + 0.5
        clean = self.x + 0.3 * rng.standard_normal(self.x.shape)
        self.y = np.einsum("god,ngd->ngo", rows, clean)
        if self.op.bias is not None:
            self.y = self.y + self.op.bias.reshape(groups, -1)
        settings = Settings(registry().decompositions, "balanced", 0)
        moments = moments_of(clean)
        layer = Layer(("layer",), lambda: self.op, settings, Usage(), moments)
        self.ranks = ranks or stated
        self.chain = layer.candidate(method, self.ranks).chain
        self.method = layer.methods[method]
        self.metric = Metric(self.op, moments)
        self.sums = joint(self.x, self.y)

    def later(self, metric: Metric | None = None) -> LaterStages:
        basis = first_basis(self.op, self.chain)
        split = self.x.reshape(ROWS, self.op.groups, basis.shape[1], -1)
        z = np.einsum("rgnp,gnk->rgkp", split, basis).reshape(ROWS, self.op.groups, -1)
        sums = joint(z, self.y)
        return LaterStages(self.op, self.method, self.chain, metric or self.metric, sums, sums)

    def error(self, chain: Chain) -> float:
        """Of the outputs on the rows themselves."""
        rows = rows_of(with_weight(self.op, reconstruct(self.op, chain)))
        outputs = np.einsum("god,ngd->ngo", rows, self.x)
        if self.op.bias is not None:
            assert chain[-1].bias is not None
            outputs = outputs + chain[-1].bias.reshape(self.op.groups, -1)
        return float(np.square(outputs - self.y).sum())

    def least_squares(self) -> float:
        """The least error that any map of what the first stage gives has, group by group."""
        weight = self.chain[0].weight
        first = weight.reshape(self.op.groups, len(weight) // self.op.groups, -1)
        total = 0.0
        for group in range(self.op.groups):
            x = self.x[:, group].reshape(ROWS, first.shape[2], -1)
            z = np.einsum("ri,nip->nrp", first[group], x).reshape(ROWS, -1)
            if self.op.bias is not None:
                z = np.column_stack([z, np.ones(ROWS)])
            y = self.y[:, group]
            total += float(np.square(z @ np.linalg.lstsq(z, y, rcond=None)[0] - y).sum())
        return total


@pytest.mark.parametrize("name", CASES)
def test_later_stages_are_the_regression_on_the_first(name: str) -> None:
    setting = Setting(name)
    refit = setting.later().solve(1e-9).chain
    np.testing.assert_array_equal(refit[0].weight, setting.chain[0].weight)
    assert setting.error(refit) == pytest.approx(setting.least_squares(), rel=1e-5)
    assert setting.error(refit) < setting.error(setting.chain)


@pytest.mark.parametrize("name", CASES)
def test_errors_on_what_the_first_stage_gives_are_those_of_the_layer(name: str) -> None:
    setting = Setting(name)
    problem = setting.later()
    refit = problem.solve(1e-2).chain
    for chain in (setting.chain, refit):
        on_sums = OnSums(*problem.affine(chain), problem.validation)
        assert on_sums.squared_error(None) == pytest.approx(setting.error(chain), rel=1e-6)
    whole = WholeLayer(
        setting.op, None, (), setting.metric, setting.sums, setting.sums, "balanced", 0
    )
    pairs = [
        [OnSums(*each.affine(chain), each.validation) for chain in (setting.chain, refit)]
        for each in (problem, whole)
    ]
    errors = [first.standard_error(second, setting.metric) for first, second in pairs]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_a_core_of_few_outputs_is_the_best_of_its_rank() -> None:
    setting = Setting("tucker2", (3, 3))
    refit = setting.later().solve(1e-9).chain
    assert [stage.weight.shape for stage in refit] == [s.weight.shape for s in setting.chain]
    before = setting.metric.weight_outputs(np.eye(7)[None])[0]

    def weighted(chain: Chain) -> float:
        rows = rows_of(with_weight(setting.op, reconstruct(setting.op, chain)))
        assert chain[-1].bias is not None
        apart = np.einsum("god,ngd->ngo", rows, setting.x) + chain[-1].bias - setting.y
        return float(np.square(apart[:, 0] @ before).sum())

    best = weighted(refit)
    assert best < weighted(setting.chain)
    for _ in range(20):
        moved = tuple(
            with_weight(stage, stage.weight + 1e-3 * RNG.standard_normal(stage.weight.shape))
            for stage in refit[1:]
        )
        assert weighted((refit[0], *moved)) > best


def test_a_strong_ridge_leads_back_to_the_weight() -> None:
    setting = Setting("svd", (9,))
    refit = setting.later().solve(1e9).chain
    dense = reconstruct(setting.op, refit)
    np.testing.assert_allclose(dense, setting.op.weight, rtol=1e-4, atol=1e-5)


def test_inputs_that_never_vary_are_refused() -> None:
    setting = Setting("svd")
    constant = np.broadcast_to(setting.x[:1], setting.x.shape)
    problem = setting.later(Metric(setting.op, moments_of(constant)))
    with pytest.raises(Refused, match="never vary"):
        problem.solve(1e-2)


def test_a_wide_layer_is_refitted_after_its_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("groups of parts")
    chains: list[Chain] = []
    for wide in (10**6, 1):
        monkeypatch.setattr(refit_problem, "WIDE", wide)
        refit = case.refit(case.op, list(range(case.op.groups)))
        basis = refit.basis("layer")
        assert (basis is None) == (wide > 1)
        refit.visit("layer", *case.joints(list(range(case.op.groups)), basis))
        decision = refit.decision("layer")
        assert decision.layer.refit
        assert decision.chain is not None
        assert decision.layer.predicted is not None
        chains.append(decision.chain)
    start = case.layer(case.op, list(range(case.op.groups))).candidate("tucker2", (2, 2)).chain
    np.testing.assert_array_equal(chains[1][0].weight, start[0].weight)
    assert not np.array_equal(chains[0][0].weight, start[0].weight)


def test_the_error_of_nothing_is_that_of_the_bias() -> None:
    rng = np.random.default_rng(2)
    op = Linear(rng.standard_normal((4, 3)), rng.standard_normal(4))
    x, y = rng.standard_normal((50, 1, 3)), rng.standard_normal((50, 1, 4))
    assert op.bias is not None
    expected = float(np.square(y[:, 0] - op.bias).sum())
    assert error_of_nothing(op, joint(x, y), None) == pytest.approx(expected)
    without = replace(op, bias=None)
    assert error_of_nothing(without, joint(x, y), None) == pytest.approx(float(np.square(y).sum()))
