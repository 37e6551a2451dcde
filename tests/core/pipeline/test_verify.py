"""The last check of a built module: right chains pass, wrong ones do not, sampled or whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from rankfold.decompose.base import Factorization
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op, reference
from rankfold.ops.reference import forward
from rankfold.pipeline import verify
from rankfold.pipeline.verify import check_chain
from rankfold.plugins.registry import registry

RNG = np.random.default_rng(8)
EPSILON = float(np.finfo(np.float32).eps)


def uneven(*shape: int) -> Array:
    """A weight of a falling spectrum with a few rows that stand out and one of zeros."""
    weight = RNG.standard_normal(shape)
    flat = weight.reshape(shape[0], -1)
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    flat[:] = (left * values * np.geomspace(1.0, 0.03, len(values))) @ right
    weight[::29] *= 40.0
    weight[5] = 0.0
    return weight.astype(np.float32)


CASES: dict[str, tuple[Op, str, tuple[int, ...]]] = {
    "linear": (Linear(uneven(150, 61), RNG.standard_normal(150)), "svd", (17,)),
    "table": (Embedding(uneven(170, 41)), "svd", (13,)),
    "conv": (Conv(uneven(140, 9, 3, 2), RNG.standard_normal(140), stride=2), "tucker2", (23, 7)),
    "padded": (Conv(uneven(140, 9, 3, 2), padding=(1, 1)), "spatial_svd", (11,)),
    "channels": (Conv(uneven(150, 8, 3, 3)), "channel_svd", (19,)),
    "transposed": (ConvTranspose(uneven(135, 11, 2, 3), stride=2), "channel_svd", (21,)),
}


@pytest.fixture(params=["whole", "sampled"])
def sampled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "sampled":
        monkeypatch.setattr(verify, "_WHOLE", 0)
    return bool(request.param == "sampled")


def factored(name: str) -> tuple[Op, Factorization]:
    op, method, ranks = CASES[name]
    rng = np.random.default_rng(0)
    result = (
        registry()
        .methods((method,))[method]
        .decompose(op, ranks, spectrum=Spectrum(op), placement="balanced", rng=rng)
    )
    return op, result


def checked(op: Op, chain: Chain, error: float, built: Chain | None = None, seed: int = 0) -> None:
    """Check a chain that was built as `built`."""

    def run(x: Array) -> Array:
        return forward(chain if built is None else built, x)

    check_chain(op, chain, error, run, EPSILON, np.random.default_rng(seed))


@pytest.mark.parametrize("name", CASES)
def test_a_right_chain_passes_whatever_is_drawn(name: str, sampled: bool) -> None:
    op, result = factored(name)
    for seed in range(40 if sampled else 1):
        checked(op, result.chain, result.error, seed=seed)


def changed(chain: Chain, stage: int, change: Callable[[Array], Array]) -> Chain:
    stages = list(chain)
    weight = change(np.array(stages[stage].weight))
    stages[stage] = replace(stages[stage], weight=weight)
    return tuple(stages)


WRONG: dict[str, Callable[[Array], Array]] = {
    "outputs in another order": lambda w: np.roll(w, 1, axis=0),
    "inputs in another order": lambda w: np.roll(w, 1, axis=1),
    "twice as large": lambda w: 2.0 * w,
    "another sign": lambda w: -w,
    "without half of the outputs": lambda w: (w.T * (np.arange(len(w)) % 2)).T,
    "not finite": lambda w: w * np.nan,
}


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("stage", [0, -1])
@pytest.mark.parametrize("name", CASES)
def test_a_wrong_chain_is_refused(name: str, stage: int, fault: str, sampled: bool) -> None:
    op, result = factored(name)
    with pytest.raises(Refused, match="weight error"):
        checked(op, changed(result.chain, stage, WRONG[fault]), result.error)


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("name", CASES)
def test_a_module_that_is_not_its_chain_is_refused(name: str, fault: str, sampled: bool) -> None:
    op, result = factored(name)
    with pytest.raises(Refused, match="the built module is off by"):
        checked(op, result.chain, result.error, changed(result.chain, -1, WRONG[fault]))


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_a_module_without_its_bias_is_refused(name: str, sampled: bool) -> None:
    op, result = factored(name)
    last = replace(result.chain[-1], bias=None)  # type: ignore[arg-type]  # no table is last
    with pytest.raises(Refused, match="the built module is off by"):
        checked(op, result.chain, result.error, (*result.chain[:-1], last))


@pytest.mark.parametrize("name", ["linear", "conv", "table"])
def test_a_module_of_other_outputs_is_refused(name: str, sampled: bool) -> None:
    op, result = factored(name)
    bare = (*result.chain[:-1], replace(result.chain[-1], bias=None))  # type: ignore[arg-type]
    more = changed(bare, -1, lambda w: np.concatenate([w, w]))
    with pytest.raises(Refused, match="gives shape"):
        checked(op, result.chain, result.error, more)


@pytest.mark.parametrize("name", CASES)
def test_an_error_that_is_too_small_is_refused(name: str, sampled: bool) -> None:
    op, result = factored(name)
    with pytest.raises(Refused, match="weight error"):
        checked(op, result.chain, 0.97 * result.error)


def test_a_large_layer_is_multiplied_out_in_single_precision_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    multiplied: Counter[str] = Counter()
    usual = reference._of_shape

    def of_shape(op: Op, stages: Chain, weight: Array) -> Array:
        multiplied[str(weight.dtype)] += weight.size
        return usual(op, stages, weight)

    monkeypatch.setattr(reference, "_of_shape", of_shape)
    left, right = RNG.standard_normal((1400, 5)), RNG.standard_normal((5, 900))
    chain = Linear(np.float32(right)), Linear(np.float32(left))
    checked(Linear(np.float32(left @ right)), chain, 0.0)
    assert multiplied == {"float32": 1400 * 900, "float64": 64 * 900}


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_weights_whose_squares_are_out_of_range_are_checked_in_double(
    scale: float, sampled: bool
) -> None:
    left, right = RNG.standard_normal((140, 5)), RNG.standard_normal((5, 90))
    chain = Linear(np.float32(right)), Linear(np.float32(left * scale))
    op = Linear(np.float32(left @ right * scale))
    checked(op, chain, 0.0)
    with pytest.raises(Refused, match="weight error"):
        checked(op, changed(chain, 0, WRONG["outputs in another order"]), 0.0)
