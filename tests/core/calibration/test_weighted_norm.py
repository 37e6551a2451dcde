"""Decompositions under a metric: tr(G ΔW C ΔWᵀ) is what they lower, and what they announce."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.calibration.weighted_norm import Metric, rows_of
from rankfold.layers.layer import Layer
from rankfold.layers.output_error import loss_of
from rankfold.layers.settings import Settings
from rankfold.linalg import Array
from rankfold.ops import Conv, ConvTranspose, Embedding, Linear, Op, with_weight
from rankfold.ops.reference import reconstruct
from rankfold.plugins.registry import registry

RNG = np.random.default_rng(5)
OPS: dict[str, tuple[Op, tuple[str, ...]]] = {
    "linear": (Linear(RNG.standard_normal((11, 17)), RNG.standard_normal(11)), ("svd",)),
    "tall": (Linear(RNG.standard_normal((19, 7))), ("svd",)),
    "grouped": (Linear(RNG.standard_normal((12, 5)), groups=3), ("svd",)),
    "table": (Embedding(RNG.standard_normal((23, 9))), ("svd",)),
    "conv": (
        Conv(RNG.standard_normal((10, 6, 3, 2)), RNG.standard_normal(10)),
        ("channel_svd", "spatial_svd", "tucker2", "cp", "cp3"),
    ),
    "tall conv": (
        Conv(RNG.standard_normal((31, 3, 2, 3))),
        ("channel_svd", "spatial_svd", "tucker2"),
    ),
    "grouped conv": (
        Conv(RNG.standard_normal((10, 4, 3, 3)), groups=2),
        ("channel_svd", "spatial_svd", "tucker2", "cp"),
    ),
    "transposed": (
        ConvTranspose(RNG.standard_normal((7, 6, 2, 3)), RNG.standard_normal(7)),
        ("channel_svd", "spatial_svd", "tucker2"),
    ),
}
OPS |= {f"wide {name}": OPS[name] for name in ("conv", "tall conv", "grouped conv", "transposed")}
CASES = [(name, method) for name, (_, methods) in OPS.items() for method in methods]


def separable(op: Op) -> LayerMoments:
    """Moments as those of wide patches are."""
    groups, into, positions = op.groups, op.weight.shape[1], int(np.prod(op.weight.shape[2:]))
    half = RNG.standard_normal((groups, positions, 2 * positions))
    moment = SeparableMoment(
        RNG.uniform(0.05, 0.5, (groups, into)),
        half @ half.swapaxes(1, 2),
        3.0 * RNG.standard_normal((groups, into * positions, 5)),
    )
    return LayerMoments(moment, RNG.standard_normal(moment.shape[:2]), None, 1, 1.0)


def moments_of(
    op: Op, *, grads: str = "full", samples: int = 10**6, wide: bool = False
) -> LayerMoments:
    rows = rows_of(op)
    groups, out, size = rows.shape
    inputs: Array | SeparableMoment
    if wide:
        inputs, mean = separable(op).inputs, separable(op).mean
    elif isinstance(op, Embedding):
        share = RNG.uniform(0.1, 1.0, (1, size))
        inputs = mean = share / share.sum()
    else:
        half = RNG.standard_normal((groups, size, size)) * np.geomspace(1.0, 0.03, size)
        mean = RNG.standard_normal((groups, size)) * 0.3
        inputs = half @ half.swapaxes(1, 2) + mean[:, :, None] * mean[:, None, :]
    half = RNG.standard_normal((groups, out, out)) * np.geomspace(1.0, 0.1, out)
    full = half @ half.swapaxes(1, 2)
    chosen = {"full": full, "diagonal": np.einsum("goo->go", full), "none": None}[grads]
    return LayerMoments(inputs, mean, chosen, samples, 13.0)


def layer_of(op: Op, moments: LayerMoments | None) -> Layer:
    return Layer(
        ("layer",), lambda: op, Settings(registry().decompositions, "balanced", 0), moments=moments
    )


def brute_force(op: Op, moments: LayerMoments, apart: np.ndarray) -> float:
    inputs, total = moments.inputs, 0.0
    wide = isinstance(inputs, SeparableMoment)
    if isinstance(inputs, SeparableMoment):
        inputs = inputs.products(np.tile(np.eye(apart.shape[2]), (len(apart), 1, 1)))
    for group, rows in enumerate(apart):
        c = np.diag(inputs[group]) if inputs.ndim == 2 else inputs[group]
        if wide:  # it is the covariance
            c = c + np.outer(moments.mean[group], moments.mean[group])
        if op.bias is not None:
            c = c - np.outer(moments.mean[group], moments.mean[group])
        g = np.eye(len(rows))
        if moments.grads is not None:
            g = moments.grads[group]
            g = np.diag(g) if g.ndim == 1 else g
        total += float(np.trace(g @ rows @ c @ rows.T))
    return total * moments.positions_per_example


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("grads", ["full", "diagonal", "none"])
@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_announced_loss_is_the_weighted_error(name: str, method: str, grads: str) -> None:
    op, _ = OPS[name]
    moments = moments_of(op, grads=grads, wide=name.startswith("wide"))
    layer = layer_of(op, moments)
    ranks = tuple(max(1, rank // 3) for rank in layer.methods[method].max_ranks(op))
    candidate = layer.candidate(method, ranks)
    apart = rows_of(with_weight(op, reconstruct(op, candidate.chain))) - rows_of(op)
    assert candidate.loss == pytest.approx(brute_force(op, moments, apart), rel=1e-3)


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize(("name", "method"), CASES)
def test_weighting_loses_less_than_the_plain_decomposition(name: str, method: str) -> None:
    op, _ = OPS[name]
    moments = moments_of(op, wide=name.startswith("wide"))
    weighted, plain = layer_of(op, moments), layer_of(op, None)
    for share in (2, 3, 4):
        ranks = tuple(max(1, rank // share) for rank in plain.methods[method].max_ranks(op))
        chain = plain.candidate(method, ranks).chain
        apart = rows_of(with_weight(op, reconstruct(op, chain))) - rows_of(op)
        assert weighted.candidate(method, ranks).loss <= brute_force(op, moments, apart) * 1.001


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize(("name", "method"), CASES)
def test_offers_announce_what_the_decomposition_loses(name: str, method: str, data: bool) -> None:
    op, _ = OPS[name]
    layer = layer_of(op, moments_of(op, wide=name.startswith("wide")) if data else None)
    priced = layer.methods[method].error_at_ranks(op, layer.spectrum, 1)
    assert len(priced) >= min(5, *layer.methods[method].max_ranks(op))
    total = layer.loss_if_dropped
    for ranks, squared in priced[:: max(1, len(priced) // 6)]:
        assert squared is not None
        got, announced = layer.candidate(method, ranks).loss, loss_of(squared, layer.spectrum)
        if method.startswith("cp"):
            assert got == pytest.approx(announced, rel=0.3, abs=0.05 * total)  # another start
        elif method == "tucker2" and not data:
            assert got <= announced * (1 + 1e-6) + 1e-12  # HOOI comes after
        elif method in ("tucker2", "spatial_svd") and data:  # priced on one start, made from two
            assert got <= announced * (1 + 1e-4) + 1e-7 * total
        else:
            assert got == pytest.approx(announced, rel=1e-4, abs=1e-7 * total)


@pytest.mark.parametrize(("name", "method"), [c for c in CASES if c[1] not in ("cp", "cp3")])
def test_full_rank_is_exact_under_any_metric(name: str, method: str) -> None:
    op, _ = OPS[name]
    layer = layer_of(op, moments_of(op, samples=300, wide=name.startswith("wide")))
    candidate = layer.candidate(method, layer.methods[method].max_ranks(op))
    assert candidate.error < 1e-5


@pytest.mark.parametrize("name", [name for name, (op, _) in OPS.items() if op.bias is not None])
def test_the_bias_makes_up_for_the_error_of_the_mean(name: str) -> None:
    op, methods = OPS[name]
    moments = moments_of(op, wide=name.startswith("wide"))
    candidate = layer_of(op, moments).candidate(methods[0], (2,))
    lost = rows_of(op) - rows_of(with_weight(op, reconstruct(op, candidate.chain)))
    last = candidate.chain[-1].bias
    assert last is not None
    assert op.bias is not None
    shift = np.einsum("god,gd->go", lost, moments.mean).reshape(-1)
    np.testing.assert_allclose(last, op.bias + shift, rtol=1e-8, atol=1e-8)


def test_two_samples_leave_the_plain_decomposition() -> None:
    op = Linear(RNG.standard_normal((12, 20)))
    x = RNG.standard_normal((2, 20))
    moments = LayerMoments((x.T @ x / 2)[None], x.mean(0)[None], None, 2, 1.0)
    weighted = layer_of(op, moments).candidate("svd", (4,))
    assert weighted.error < layer_of(op, None).candidate("svd", (4,)).error * 1.05


@pytest.mark.parametrize("change", [lambda m: m[:, :-1, :-1], lambda m: m * np.nan])
def test_moments_of_another_layer_are_refused(
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    op = Linear(RNG.standard_normal((5, 8)))
    good = moments_of(op)
    assert not isinstance(good.inputs, SeparableMoment)
    bad = LayerMoments(change(good.inputs), good.mean, good.grads, 9, 1.0)
    with pytest.raises(Exception, match="moments of its inputs"):
        Metric(op, bad)


def test_separable_moments_of_another_layer_are_refused() -> None:
    conv, other = OPS["conv"][0], Conv(RNG.standard_normal((10, 6, 2, 2)))
    for op in (other, OPS["linear"][0], OPS["table"][0]):
        with pytest.raises(Exception, match="those of another layer"):
            Metric(op, separable(conv))


def test_moments_of_the_channels_alone_are_refused() -> None:
    op = OPS["conv"][0]
    old = LayerMoments(np.eye(6)[None], np.ones((1, 6)), None, 9, 1.0)
    with pytest.raises(Exception, match="an earlier rankfold; gather them for this model"):
        Metric(op, old)


@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0])
def test_losses_under_wide_moments_in_single_precision_are_good_to_a_thousandth(
    mean: float,
) -> None:
    # Patches of 128 channels, of which few directions matter besides a mean that outweighs them.
    rng = np.random.default_rng(3)
    op = Conv(rng.standard_normal((24, 128, 3, 3)))
    width, samples = 1152, 600
    spread = rng.standard_normal((width, width)) * np.geomspace(1.0, 1e-2, width)
    x = rng.standard_normal((samples, width)) @ spread.T / 30 + mean
    moments = [
        LayerMoments((x.T @ x / samples)[None].astype(dtype), x.mean(0)[None], None, samples, 1.0)
        for dtype in (np.float32, np.float64)
    ]
    for method, ranks in (("channel_svd", (3,)), ("channel_svd", (23,)), ("tucker2", (12, 64))):
        settings = Settings(registry().decompositions, "balanced", 0)
        losses = [
            Layer(("layer",), lambda: op, settings, moments=of).candidate(method, ranks).loss
            for of in moments
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), method
