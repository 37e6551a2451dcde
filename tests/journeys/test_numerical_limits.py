"""Every decomposition at the limits of numbers: rank, scale, precision, size.

What holds everywhere: the stages are finite, the announced error is that of the reconstruction, and
methods with a closed form lose no more than the best approximation (NumPy's SVD).
"""

import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import rankfold as rf
from rankfold.decompose.base import Decomposition, Factorization, Placement
from rankfold.decompose.spectrum import Spectrum
from rankfold.ops import Op
from rankfold.ops.reference import reconstruct
from rankfold.plugins.registry import registry

DIRECT = ("svd", "channel_svd", "spatial_svd", "tucker2")
CP = ("cp", "cp3")
METHODS = DIRECT + CP
MATRICES = ("svd", "channel_svd", "spatial_svd")
PLACEMENTS: tuple[Placement, ...] = ("balanced", "classical")
# An error is the root of 1 − kept share. The share is a ratio of sums of squares, and BLAS rounds
# these by up to a few ε per term of its inner loops, tens of ε in all: good to the root of 100 ε.
ROOT = 1.5e-7


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def method(name: str) -> Decomposition:
    return registry().methods([name])[name]


def kernel_of(name: str) -> tuple[int, int]:
    return (1, 1) if name == "svd" else (3, 2)


def factored(
    op: Op, name: str, ranks: tuple[int, ...], placement: Placement = "balanced"
) -> Factorization:
    rng = np.random.default_rng(0)
    found = method(name).decompose(op, ranks, spectrum=Spectrum(op), placement=placement, rng=rng)
    assert all(np.isfinite(stage.weight).all() for stage in found.chain)
    assert math.isfinite(found.error)
    return found


def ranks_of(name: str, op: Op, share: float) -> tuple[int, ...]:
    return tuple(max(1, round(share * most)) for most in method(name).max_ranks(op))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖ / ‖b‖ at any scale."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    scale = np.abs(b).max()
    return float(np.linalg.norm(a / scale - b / scale) / np.linalg.norm(b / scale))


def measured(op: Op, found: Factorization) -> float:
    return distance(reconstruct(op, found.chain), op.weight)


def matrix_of(name: str, weight: np.ndarray) -> np.ndarray:
    if name == "spatial_svd":
        out, into, kh, kw = weight.shape
        return weight.transpose(0, 3, 1, 2).reshape(out * kw, into * kh)
    return weight.reshape(len(weight), -1)


def weight_of(name: str, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if name == "spatial_svd":
        out, into, kh, kw = shape
        return matrix.reshape(out, kw, into, kh).transpose(0, 2, 3, 1)
    return matrix.reshape(shape)


def of_own_model(name: str, op: Op, ranks: tuple[int, ...], rng: np.random.Generator) -> Op:
    """The op with a weight that a chain of these ranks stands for exactly."""
    template = method(name).template(op, ranks)
    chain = [replace(s, weight=rng.standard_normal(s.weight.shape)) for s in template]
    return replace(op, weight=reconstruct(op, chain))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", [rf.Conv, rf.ConvTranspose])
@pytest.mark.parametrize("name", METHODS)
def test_a_weight_of_the_methods_own_model_is_found(
    name: str, kind: type, groups: int, share: float, rng: np.random.Generator
) -> None:
    if name == "svd" and kind is rf.ConvTranspose:
        pytest.skip("svd does not apply to a ConvTranspose")
    if name in CP and groups > 1 and kind is rf.ConvTranspose:
        pytest.skip("CP fits each group by itself, and no kind of convolution differently")
    blank = kind(np.zeros((11 * groups, 7, *kernel_of(name))), groups=groups)
    ranks = ranks_of(name, blank, share)
    op = of_own_model(name, blank, ranks, rng)
    found = factored(op, name, ranks)
    if name in DIRECT:
        assert measured(op, found) < 1e-14
        assert found.error < ROOT
    else:  # many terms are hard to tell apart: TensorLy ends at 5e-2 after 500 sweeps
        assert measured(op, found) < (1e-6 if share < 0.1 else 2e-2)


@pytest.mark.parametrize("spacing", ["geometric", "one small", "one large"])
@pytest.mark.parametrize("condition", [1e3, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("name", MATRICES)
def test_ill_conditioned_matrices_lose_the_least(
    name: str, condition: float, spacing: str, rng: np.random.Generator
) -> None:
    shape = (13, 11, *kernel_of(name))
    rows, columns = matrix_of(name, np.zeros(shape)).shape
    n = min(rows, columns)
    values = np.ones(n)
    values[1:] = 1.0 / condition if spacing == "one large" else 1.0
    if spacing == "one small":
        values[-1] /= condition
    elif spacing == "geometric":
        values = np.geomspace(1.0, 1.0 / condition, n)
    left = np.linalg.qr(rng.standard_normal((rows, n)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, n)))[0]
    op = rf.Conv(weight_of(name, (left * values) @ right.T, shape))
    for rank in range(1, n + 1):
        found = factored(op, name, (rank,))
        best = np.linalg.norm(values[rank:]) / np.linalg.norm(values)
        assert best * (1 - 1e-9) - 1e-14 <= measured(op, found) <= best * 1.0001 + ROOT
        assert found.error == pytest.approx(best, rel=1e-4, abs=ROOT)
    assert measured(op, found) < 1e-14


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("condition", [1e3, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("name", ["tucker2", *CP])
def test_ill_conditioned_channels_stay_consistent_and_exact_at_full_rank(
    name: str, condition: float, rng: np.random.Generator
) -> None:
    weight = rng.standard_normal((13, 11, 3, 2))
    weight *= np.geomspace(1.0, 1.0 / condition, 13)[:, None, None, None]
    weight *= np.geomspace(1.0 / condition, 1.0, 11)[:, None, None]
    op = rf.Conv(weight)
    for share in (0.01, 0.2, 0.5, 0.8, 1.0):
        found = factored(op, name, ranks_of(name, op, share))
        assert found.error == pytest.approx(measured(op, found), abs=ROOT)
    assert measured(op, found) < 1e-14


def held(weight: np.ndarray, dtype: type) -> np.ndarray:
    """In that precision; bfloat16 in a float32 array, as backends hand it to the core."""
    made = weight.astype(dtype)
    return made.astype(np.float32) if dtype is ml_dtypes.bfloat16 else made


def stored(found: Factorization, dtype: type) -> Factorization:
    """The chain as it is written back into a layer of that precision."""
    chain = tuple(replace(stage, weight=held(stage.weight, dtype)) for stage in found.chain)
    assert all(np.isfinite(stage.weight).all() for stage in chain)
    return Factorization(chain, found.error)


SCALES = {
    np.float64: (1e-300, 1e-150, 1e-30, 1e-10, 1e10, 1e30, 1e150, 1e300),
    np.float32: (1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30),
    ml_dtypes.bfloat16: (1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30),
    np.float16: (2.0**-8, 2.0**-4, 2.0**4, 2.0**8),
}
ROUNDING = {np.float64: 1e-14, np.float32: 1e-6, ml_dtypes.bfloat16: 2e-2, np.float16: 2e-3}


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("name", METHODS)
def test_the_chain_scales_with_the_weight_in_every_precision(
    name: str, dtype: type, placement: Placement, rng: np.random.Generator
) -> None:
    plain = rng.standard_normal((11, 7, *kernel_of(name)))
    exact = rf.Conv(plain)
    ranks = ranks_of(name, exact, 0.4)
    expected = reconstruct(exact, factored(exact, name, ranks).chain)
    for scale in SCALES[dtype]:
        op = rf.Conv(held(plain * scale, dtype))
        found = stored(factored(op, name, ranks, placement), dtype)
        assert {stage.weight.dtype for stage in found.chain} == {op.weight.dtype}
        dense = reconstruct(op, found.chain)
        # a fit by iterations carries the rounding of the weight on
        slack = 1e-4 if name in CP and dtype is np.float64 else 20 if name in CP else 5
        slack = slack if slack < 1 else slack * ROUNDING[dtype]
        assert distance(dense, expected * scale) < slack
        assert measured(op, found) == pytest.approx(found.error, abs=ROOT + 5 * ROUNDING[dtype])


FLOAT16 = {
    "dense": np.s_[:],
    "one column": np.s_[:, 5],
    "one row": np.s_[7],
    "one element": np.s_[7, 5, 0, 0],
}


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("pattern", FLOAT16)
@pytest.mark.parametrize(
    ("magnitude", "placement"),
    [(m, "balanced") for m in (6e-5, 1e-3, 1.0, 1e3, 6e4)]
    + [(m, "classical") for m in (6e-5, 1e-3, 1.0, 100.0)],
)
@pytest.mark.parametrize("name", METHODS)
def test_stages_in_float16_neither_overflow_nor_vanish(
    name: str, magnitude: float, placement: Placement, pattern: str, rng: np.random.Generator
) -> None:
    weight = np.zeros((64, 48, *kernel_of(name)))
    place = FLOAT16[pattern]
    weight[place] = magnitude * rng.uniform(0.5, 1.0, weight[place].shape)
    op = rf.Conv(weight.astype(np.float16))
    found = factored(op, name, (4,) * len(method(name).max_ranks(op)), placement)
    assert measured(op, found) == pytest.approx(found.error, abs=5e-3)


@pytest.mark.parametrize("name", METHODS)
def test_classical_stages_beyond_float16_are_an_error_that_names_the_remedy(name: str) -> None:
    op = rf.Conv(np.full((64, 48, *kernel_of(name)), 6e4, dtype=np.float16))
    with pytest.raises(rf.RankfoldError, match="balanced"):
        factored(op, name, (4,) * len(method(name).max_ranks(op)), "classical")


@pytest.mark.usefixtures("few_sweeps")
@pytest.mark.parametrize("damage", ["row", "column", "both", "duplicates", "element", "constant"])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", METHODS)
def test_degenerate_weights(
    name: str, placement: Placement, share: float, damage: str, rng: np.random.Generator
) -> None:
    weight = rng.standard_normal((9, 7, *kernel_of(name)))
    if damage in ("row", "both"):
        weight[[0, 4, 8]] = 0.0
    if damage in ("column", "both"):
        weight[:, [1, 6]] = 0.0
    if damage == "duplicates":
        weight[2:7], weight[:, 4:] = weight[1], weight[:, :1]
    if damage == "element":
        weight = np.zeros_like(weight)
        weight[4, 5, -1, 0] = -3.0
    if damage == "constant":
        weight[:] = 2.0
    op = rf.Conv(weight)
    found = factored(op, name, ranks_of(name, op, share), placement)
    assert measured(op, found) == pytest.approx(found.error, abs=ROOT)
    if share == 1.0 or damage in ("element", "constant"):
        assert measured(op, found) < (1e-3 if damage == "constant" and name in CP else 1e-14)
