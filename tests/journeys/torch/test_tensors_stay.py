"""With calibration data, too, tensors of an accelerator are worked with where they are.

Tensors of the CPU stand for those of an accelerator; the guard refuses transfers to the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from tests.core.transfers import TransferError, staying
from torch import nn

import rankfold as rf
from rankfold.calibration.moments import LayerMoments, RegressionSums
from rankfold.calibration.patch_sketch import separable
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.calibration.weighted_norm import Metric
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op
from rankfold.ops.transforms import mapped
from rankfold.pipeline.refit_choice import LayerPart, best_refit
from rankfold.pipeline.refit_problem import LaterStages, RefitProblem, WholeLayer, first_basis
from rankfold.plugins.registry import registry
from rankfold_torch.calibration import sums
from rankfold_torch.layers import stock

RNG = np.random.default_rng(11)
SumsOrMoments = TypeVar("SumsOrMoments", LayerMoments, RegressionSums, SeparableMoment)


def _numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


OPS: dict[str, Op] = {
    "linear": Linear(_numbers(22, 30), _numbers(22)),
    "tall": Linear(RNG.standard_normal((31, 17))),
    "grouped": Linear(_numbers(21, 11), groups=3),
    "table": Embedding(_numbers(40, 13)),
    "conv": Conv(_numbers(17, 9, 3, 3), _numbers(17)),
    "tall conv": Conv(_numbers(41, 4, 2, 3), stride=2),
    "grouped conv": Conv(_numbers(14, 8, 3, 3), _numbers(14), groups=2),
    "transposed": ConvTranspose(_numbers(12, 9, 2, 3), _numbers(12)),
}
FORMS = {
    "matrices": ("full", "full"),
    "single matrices": ("full", "full"),
    "separable": ("separable", "diagonal"),
    "diagonals": ("diagonal", "none"),
}


def _occurs(op: Op, form: str) -> bool:
    """Return whether moments of a layer come in a form."""
    if isinstance(op, Embedding):
        return form == "diagonals"
    return form != ("separable" if isinstance(op, Linear) else "diagonals")


METHODS = ("svd", "channel_svd", "spatial_svd", "tucker2")
CASES = [
    (name, form, method)
    for name, op in OPS.items()
    for form in FORMS
    for method in METHODS
    if registry().decompositions[method].refuse(op) is None and _occurs(op, form)
]


def _tensors(holder: SumsOrMoments) -> SumsOrMoments:
    def moved(value: Any) -> Any:
        if isinstance(value, SeparableMoment):
            return _tensors(value)
        return torch.tensor(np.array(value)) if isinstance(value, np.ndarray) else value

    return type(holder)(**{f.name: moved(getattr(holder, f.name)) for f in fields(holder)})


def _moved(op: Op) -> Op:
    return mapped(op, lambda array: torch.tensor(np.array(array)))  # type: ignore[arg-type,return-value]


def _second_moment(groups: int, size: int, form: str) -> Any:
    half = RNG.standard_normal((groups, size, 2 * size)) * np.geomspace(1, 0.1, size)[:, None]
    moment = half @ half.mT / size
    return np.einsum("gii->gi", moment) if form == "diagonal" else moment


def _separable(op: Op) -> SeparableMoment:
    groups, into, positions = op.groups, op.weight.shape[1], int(np.prod(op.weight.shape[2:]))
    return SeparableMoment(
        RNG.uniform(0.1, 1.0, (groups, into)),
        _second_moment(groups, positions, "full"),
        RNG.standard_normal((groups, into * positions, 3)),
    )


def _moments(op: Op, form: str) -> LayerMoments:
    inputs, grads = FORMS[form]
    if isinstance(op, Embedding):
        share = RNG.uniform(0.1, 1.0, (1, len(op.weight)))
        return LayerMoments(share, share, _second_moment(1, op.weight.shape[1], grads), 50, 3.0)
    size = int(np.prod(op.weight.shape[1:]))
    moment = _separable(op) if inputs == "separable" else _second_moment(op.groups, size, inputs)
    mean = 0.1 * RNG.standard_normal((op.groups, size))
    out = len(op.weight) // op.groups
    gradients = None if grads == "none" else _second_moment(op.groups, out, grads)
    if form == "single matrices":
        moment = moment.astype(np.float32)
    return LayerMoments(moment, mean, gradients, 10**5, 3.0)


def _sums(op: Op, size: int, rows: int) -> RegressionSums:
    groups, out = op.groups, len(op.weight) // op.groups
    x = RNG.standard_normal((groups, rows, size)) + 0.3
    y = RNG.standard_normal((groups, rows, out)) + x[:, :, :1]
    square = np.square(y).sum((1, 2))
    return RegressionSums(x.mT @ x, y.mT @ x, x.sum(1), y.sum(1), square, rows, y.mT @ y)


def _layer(op: Op, moments: LayerMoments) -> Layer:
    return Layer(
        ("layer",), lambda: op, Settings(registry().decompositions, "balanced", 0), moments=moments
    )


def _ranks(layer: Layer, method: str) -> tuple[int, ...]:
    return tuple(max(1, rank // 3) for rank in layer.methods[method].max_ranks(layer.op))


def _is_away(chain: Chain, dtype: torch.dtype) -> bool:
    arrays: list[Any] = [a for s in chain for a in (s.weight, s.bias) if a is not None]
    return all(
        isinstance(a, torch.Tensor) and a.is_contiguous() and a.dtype == dtype for a in arrays
    )


def _most(op: Op) -> int:
    """A few vectors of the longer side of the weight, but no square of the shorter one."""
    return 4 * max(len(op.weight), int(np.prod(op.weight.shape[1:])))


@pytest.mark.parametrize(("name", "form", "method"), CASES)
def test_a_decomposition_under_a_metric_stays_and_loses_the_same(
    name: str, form: str, method: str
) -> None:
    op = OPS[name]
    moments = _moments(op, form)
    here, away = _layer(op, moments), _layer(_moved(op), _tensors(moments))
    ranks = _ranks(here, method)
    usual = here.candidate(method, ranks)
    with staying(_most(op)):
        candidate = away.candidate(method, ranks)
        dropped = away.loss_if_dropped
        offers = away.methods[method].error_at_ranks(away.op, away.spectrum, 1)
    assert _is_away(candidate.chain, torch.tensor(np.array(op.weight)).dtype)
    assert candidate.loss == pytest.approx(usual.loss, rel=1e-4)
    assert candidate.error == pytest.approx(usual.error, rel=1e-3)
    assert candidate.output == pytest.approx(usual.output, rel=1e-3)
    assert dropped == pytest.approx(here.loss_if_dropped, rel=1e-4)
    expected = here.methods[method].error_at_ranks(op, here.spectrum, 1)
    assert [ranks for ranks, _ in offers] == [ranks for ranks, _ in expected]
    largest = max(error or 0.0 for _, error in expected)
    for (_, error), (_, other) in zip(offers, expected, strict=True):
        assert error == pytest.approx(other, rel=1e-4, abs=1e-6 * largest)


@pytest.mark.parametrize("later", [False, True], ids=["whole", "later stages"])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("linear", "svd"),
        ("tall", "svd"),
        ("conv", "channel_svd"),
        ("conv", "spatial_svd"),
        ("conv", "tucker2"),
        ("grouped conv", "tucker2"),
        ("transposed", "channel_svd"),
    ],
)
def test_a_refit_stays_and_has_the_same_error(name: str, method: str, later: bool) -> None:
    op = OPS[name]
    moments = _moments(op, "matrices")
    here = _layer(op, moments)
    ranks = _ranks(here, method)
    chain = here.candidate(method, ranks).chain
    size = int(np.prod(op.weight.shape[1:]))
    if later:
        basis = first_basis(op, chain)
        size = size // basis.shape[1] * basis.shape[2]
    fit, held = _sums(op, size, 3 * size), _sums(op, size, 2 * size)

    def errors(layer: Layer, chain: Chain, fit: Any, held: Any) -> tuple[float, float, Chain]:
        metric, decomposes = layer.spectrum.metric, layer.methods[method]
        assert metric is not None
        problem: RefitProblem = (
            LaterStages(layer.op, decomposes, chain, metric, fit, held)
            if later
            else WholeLayer(layer.op, decomposes, ranks, metric, fit, held, "balanced", 0)
        )
        best = best_refit(problem, LayerPart(layer.op, chain, None, fit, held), None)
        return best.error, best.unweighted, best.chain

    usual = errors(here, chain, fit, held)
    away = _layer(_moved(op), _tensors(moments))
    stages = tuple(map(_moved, chain))
    with staying(_most(op)):
        refit = errors(away, stages, _tensors(fit), _tensors(held))
    assert refit[:2] == pytest.approx(usual[:2], rel=1e-4)
    assert refit[2] is not stages  # the refit was the better one
    assert _is_away(refit[2], torch.tensor(np.array(op.weight)).dtype)


def test_inputs_that_never_occur_are_measured_alike() -> None:
    op, moments = OPS["conv"], _moments(OPS["conv"], "matrices")
    dead = LayerMoments(moments.inputs * 0.0, moments.mean * 0.0, moments.grads, 9, 1.0)
    here, away = Metric(op, dead), Metric(_moved(op), _tensors(dead))
    assert here.unit == away.unit == 0.0
    assert np.array_equal(here.inputs, np.asarray(away.inputs))


def test_a_sketch_becomes_a_moment_where_it_is() -> None:
    rows = RNG.standard_normal((300, 1, 12 * 40)) @ RNG.standard_normal((480, 480)) / 20 + 1.0
    matrix = RNG.standard_normal((1, 480, 30))
    split = rows.reshape(-1, 40)
    means = {
        "inputs": np.einsum("ngd,ngk->gdk", rows, rows @ matrix[0]) / 300,
        "mean": rows.mean(0),
        "squares": np.square(rows).mean(0),
        "taps": (split.T @ split)[None] / len(split),
    }
    usual = separable(matrix, means)
    tensors: Any = {name: torch.tensor(values) for name, values in means.items()}
    with staying(40 * 40):
        away = separable(matrix, tensors)
    for field in fields(usual):
        part = getattr(away, field.name)
        assert isinstance(part, torch.Tensor)
        expected = np.abs(getattr(usual, field.name))  # eigenvectors have either sign
        np.testing.assert_allclose(np.abs(part.numpy()), expected, atol=1e-6)


def test_the_guard_notices_a_transfer() -> None:
    with staying(8) as sizes:
        torch.ones(8).cpu()
        for transfer in (np.asarray, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.cpu):
            with pytest.raises(TransferError):
                transfer(torch.ones(9))
        with pytest.raises(TransferError):
            torch.ones(9).to("cpu")
    assert max(sizes) == 9


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 140, 3, padding=1),  # the next one has rows wider than are refitted whole
        nn.ReLU(),
        nn.Conv2d(140, 28, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(28, 32, 3, groups=2, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    ).eval()


BATCHES = [torch.randn(12, 3, 10, 10, generator=torch.Generator().manual_seed(n)) for n in range(3)]
_PROBES = 4000
"""Numbers in the largest output of a layer that is looked at on the host; the moments and weights
of the wide layers have more."""


@contextmanager
def _stays(most: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched, staying(most):
        patched.setattr(stock, "STAYING", ("cpu",))
        yield


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("policy", [rf.Ratio(0.35), rf.Budget(macs=0.3)], ids=repr)
def test_a_model_is_compressed_alike_where_its_tensors_are(policy: rf.Policy, refit: bool) -> None:
    options: Any = {"inputs": BATCHES[0], "calibration": BATCHES, "refit": refit}
    usual = rf.compress(_network(), policy, **options)
    with _stays(_PROBES):
        small = rf.compress(_network(), policy, **options)
    assert usual.plan.loss is not None
    assert small.plan.loss == pytest.approx(usual.plan.loss, rel=1e-4, abs=1e-6)
    for layer, other in zip(small.plan.layers, usual.plan.layers, strict=True):
        assert (layer.method, layer.ranks, layer.refit) == (other.method, other.ranks, other.refit)
        for name in ("predicted", "measured"):
            error, expected = getattr(layer, name), getattr(other, name)
            assert (error is None) == (expected is None)
            assert error is None or error == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert all(parameter.is_contiguous() for parameter in small.model.parameters())
    torch.testing.assert_close(
        small.model(BATCHES[0]), usual.model(BATCHES[0]), rtol=1e-3, atol=1e-4
    )


def test_layers_wider_than_sums_in_double_precision_are_compressed_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(103, 104), nn.ReLU(), nn.Linear(104, 9)).eval()

    monkeypatch.setattr(sums, "_LARGE", 100)
    batches = [torch.randn(30, 103, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    options: Any = {"inputs": batches[0], "calibration": batches}
    usual = rf.compress(network(), rf.Ranks(5), **options)
    with _stays(30 * 104):
        small = rf.compress(network(), rf.Ranks(5), **options)
    assert usual.plan.loss is not None
    assert small.plan.loss == pytest.approx(usual.plan.loss, rel=1e-3, abs=1e-6)
    for layer, other in zip(small.plan.layers, usual.plan.layers, strict=True):
        assert layer.predicted == pytest.approx(other.predicted, rel=1e-3)


def test_cp_of_a_kernel_of_its_rank_stays() -> None:
    rng = np.random.default_rng(3)
    weight = np.einsum("or,ir,hr,wr->oihw", *(rng.standard_normal((n, 3)) for n in (14, 9, 3, 2)))
    op = Conv(weight, rng.standard_normal(14))
    away = _layer(_moved(op), _tensors(_moments(op, "matrices")))
    with staying(_most(op)):
        candidate = away.candidate("cp", (3,))
    assert _is_away(candidate.chain, torch.float64)
    assert candidate.error < 1e-3
    assert candidate.loss < 1e-4 * away.loss_if_dropped


def test_moments_lie_where_the_model_does_and_can_be_saved(tmp_path: Path) -> None:
    usual = rf.gather(_network(), BATCHES)
    with _stays(_PROBES):
        moments = rf.gather(_network(), BATCHES)
    for path, layer in moments.items():
        for name in ("inputs", "mean", "grads"):
            array, other = getattr(layer, name), getattr(usual[path], name)
            assert isinstance(array, torch.Tensor)
            np.testing.assert_allclose(array.numpy(), other, rtol=1e-5, atol=1e-9)
    moments.save(tmp_path / "moments.safetensors")
    loaded = rf.Moments.load(tmp_path / "moments.safetensors")
    options: Any = {"inputs": BATCHES[0]}
    plan = rf.plan(_network(), rf.Ratio(0.3), moments=loaded, **options)
    # moments of a device for a model of the host, and the other way round
    assert rf.plan(_network(), rf.Ratio(0.3), moments=moments, **options) == plan
    with _stays(_PROBES):
        away = rf.plan(_network(), rf.Ratio(0.3), moments=loaded, **options)
    for layer, other in zip(away.layers, plan.layers, strict=True):
        assert (layer.method, layer.ranks) == (other.method, other.ranks)
        assert (layer.predicted or 0.0) == pytest.approx(other.predicted or 0.0, rel=1e-3)
