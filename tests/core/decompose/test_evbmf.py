"""EVBMF against an independent global minimiser, and its laws."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rankfold as rf


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def planted(rng: np.random.Generator, shape: tuple[int, int], rank: int, signal: float):
    """Unit noise and `rank` orthogonal components of singular value signal·(√L + √M)."""
    left = np.linalg.qr(noise(rng, shape[0], rank))[0]
    right = np.linalg.qr(noise(rng, shape[1], rank))[0]
    strength = signal * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    return noise(rng, *shape) + strength * left @ right.T


class Published:
    """The formulas of Nakajima et al. (JMLR 14, 2013), Theorem 2 and Corollary 1, one by one."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.short, self.long = sorted(matrix.shape)
        self.alpha = self.short / self.long
        self.squares = np.linalg.svd(matrix, compute_uv=False) ** 2

        def phi(z: float) -> float:
            return math.log(z + 1) / z - 0.5

        start = 2.5 * math.sqrt(self.alpha)
        low, high = start / 1e3, start * 1e3
        for _ in range(200):  # phi falls
            tau = math.sqrt(low * high)
            low, high = (tau, high) if phi(tau) + phi(tau / self.alpha) > 0 else (low, tau)
        self.threshold = (1 + tau) * (1 + self.alpha / tau)

    def objective(self, variance: float) -> float:
        return float(self.objectives(np.array([variance]))[0])

    def objectives(self, variances: np.ndarray) -> np.ndarray:
        x = self.squares / (self.long * variances[:, None])
        above = x > self.threshold
        half = np.where(above, x, self.threshold) - (1 + self.alpha)
        tau = 0.5 * (half + np.sqrt(half**2 - 4 * self.alpha))
        more = np.log(tau + 1) + self.alpha * np.log(tau / self.alpha + 1) - tau
        return (x - np.log(x) + np.where(above, more, 0.0)).sum(axis=1)

    def minimum(self) -> tuple[float, int]:
        """The best of many local searches between the bounds of the noise variance."""
        upper = self.squares.sum() / (self.short * self.long)
        most = min(math.ceil(self.short / (1 + self.alpha)) - 1, self.short - 1)
        lower = max(
            self.squares[most] / (self.long * self.threshold),
            self.squares[most:].mean() / self.long,
        )
        if lower >= upper:
            return upper, int((self.squares / (self.long * upper) > self.threshold).sum())
        edges = np.geomspace(lower, upper, 400)
        values = self.objectives(edges)
        best, least = float(edges[values.argmin()]), float(values.min())
        middles = self.objectives(np.sqrt(edges[:-1] * edges[1:]))
        near = middles < least + 1.0
        low, high = edges[:-1][near], edges[1:][near]
        for _ in range(7):  # each a twelfth of the one before
            grid = np.geomspace(low, high, 25, axis=1)
            values = self.objectives(grid.reshape(-1)).reshape(grid.shape)
            if values.min() < least:
                best, least = float(grid.reshape(-1)[values.argmin()]), float(values.min())
            at, row = values.argmin(axis=1), np.arange(len(grid))
            low, high = grid[row, np.maximum(at - 1, 0)], grid[row, np.minimum(at + 1, 24)]
        return best, int((self.squares / (self.long * best) > self.threshold).sum())


SHAPES = [(5, 40), (17, 17), (31, 64), (29, 260), (40, 45)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["noise", "planted", "power law", "steps"])
def test_it_finds_the_global_minimum(shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(sum(shape))
    matrix = noise(rng, *shape)
    if kind == "planted":
        matrix = planted(rng, shape, max(1, shape[0] // 6), 1.5)
    elif kind == "power law":
        matrix *= (1.0 + np.arange(shape[0]))[:, None] ** -1.1
    elif kind == "steps":
        matrix *= np.repeat([9.0, 3.0, 1.0], [2, 2, shape[0] - 4])[:, None]
    reference = Published(matrix)
    variance, rank = reference.minimum()
    found = rf.evbmf(matrix)
    assert reference.objective(found.sigma2) <= reference.objective(variance) + 1e-6
    assert found.rank == rank


@given(seed=st.integers(0, 2**32 - 1), short=st.integers(2, 14), extra=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_it_finds_the_global_minimum_of_random_spectra(seed: int, short: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    decay = rng.uniform(0.0, 3.0)
    matrix = noise(rng, short, short + extra) * (1.0 + np.arange(short))[:, None] ** -decay
    reference = Published(matrix)
    variance, _ = reference.minimum()
    found = rf.evbmf(matrix)
    assert reference.objective(found.sigma2) <= reference.objective(variance) + 1e-6


@pytest.mark.parametrize("scale", [1e-150, 1e-6, 1e-3, 1e3, 1e6, 1e150])
def test_the_rank_does_not_depend_on_scale_or_orientation(scale: float) -> None:
    rng = np.random.default_rng(1)
    matrix = planted(rng, (31, 140), 5, 1.5)
    plain, scaled, turned = (rf.evbmf(m) for m in (matrix, scale * matrix, scale * matrix.T))
    assert plain.rank == scaled.rank == turned.rank == 5
    assert turned.sigma2 == pytest.approx(scaled.sigma2, rel=1e-6)
    np.testing.assert_allclose(scaled.singular_values, scale * plain.singular_values, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_has_rank_0(shape: tuple[int, int]) -> None:
    for seed in range(5):
        assert rf.evbmf(noise(np.random.default_rng(seed), *shape)).rank == 0


def test_orthogonal_matrices_and_the_identity_have_rank_0() -> None:
    rng = np.random.default_rng(0)
    assert rf.evbmf(np.eye(23)).rank == 0
    assert rf.evbmf(np.linalg.qr(noise(rng, 23, 23))[0]).rank == 0
    assert rf.evbmf(np.linalg.qr(noise(rng, 90, 23))[0]).rank == 0


@pytest.mark.parametrize("share", [16, 8, 4])
@pytest.mark.parametrize("shape", [(64, 576), (200, 50 * 9)])
def test_a_planted_rank_in_a_flat_matrix_is_recovered(shape: tuple[int, int], share: int) -> None:
    flat = min(shape) / max(shape) < 0.2
    rank = min(shape) // share
    signal = 1.1 if flat else {16: 1.1, 8: 1.2, 4: 1.6}[share]
    for seed in range(3):
        matrix = planted(np.random.default_rng(seed), shape, rank, signal)
        assert rf.evbmf(matrix).rank == rank


@pytest.mark.parametrize("rank", [1, 4, 11])
def test_an_exactly_low_rank_matrix_has_that_rank(rank: int) -> None:
    rng = np.random.default_rng(0)
    matrix = noise(rng, 37, rank) @ noise(rng, rank, 90)
    found = rf.evbmf(matrix)
    assert found.rank == rank
    assert found.sigma2 < 1e-10


def test_a_rank_that_is_a_large_share_of_a_square_matrix_is_underestimated() -> None:
    rng = np.random.default_rng(0)
    matrix = noise(rng, 40, 30) @ noise(rng, 30, 40) + 0.1 * noise(rng, 40, 40)
    assert rf.evbmf(matrix).rank < 10


def test_the_noise_variance_is_estimated() -> None:
    matrix = 0.3 * planted(np.random.default_rng(0), (64, 640), 6, 2.0)
    assert rf.evbmf(matrix).sigma2 == pytest.approx(0.09, rel=0.03)


def test_a_known_noise_variance_sets_the_threshold() -> None:
    matrix = planted(np.random.default_rng(0), (31, 140), 5, 1.5)
    assert rf.evbmf(matrix, sigma2=1.0).rank == 5
    assert rf.evbmf(matrix, sigma2=1e3).rank == 0
    assert rf.evbmf(matrix, sigma2=1e-6).rank == 31
    assert rf.evbmf(1e6 * matrix, sigma2=1e12).rank == 5


@pytest.mark.parametrize("scale", [1.0, 1e150])
@pytest.mark.parametrize("sigma2", [1e-320, 1e-200])
def test_next_to_no_noise_keeps_the_matrix_as_it_is(sigma2: float, scale: float) -> None:
    matrix = scale * planted(np.random.default_rng(0), (31, 140), 5, 1.5)
    found = rf.evbmf(matrix, sigma2=sigma2)
    assert found.rank == 31
    assert math.isfinite(found.sigma2)
    np.testing.assert_allclose(found.singular_values, np.linalg.svd(matrix, compute_uv=False))


def test_singular_values_are_shrunk_towards_the_signal() -> None:
    shape, strength = (64, 640), 2.0 * (math.sqrt(64) + math.sqrt(640))
    matrix = planted(np.random.default_rng(0), shape, 1, 2.0)
    observed = np.linalg.svd(matrix, compute_uv=False)[0]
    (shrunken,) = rf.evbmf(matrix).singular_values
    assert abs(shrunken - strength) < abs(observed - strength)


def test_small_and_zero_matrices_have_rank_0() -> None:
    assert rf.evbmf(np.ones((1, 1))).rank == 0
    assert rf.evbmf(np.zeros((5, 7))).rank == 0
    assert rf.evbmf(np.zeros((5, 7))).sigma2 == 0.0


@pytest.mark.parametrize(
    ("matrix", "sigma2", "message"),
    [
        (np.full((3, 4), np.nan), None, "NaN or infinite"),
        (np.zeros((0, 4)), None, "give a matrix"),
        (np.zeros((2, 3, 4)), None, "give a matrix"),
        (np.ones((2, 3)), 0.0, "sigma2 0.0"),
        (np.ones((2, 3)), float("nan"), "sigma2 nan"),
    ],
)
def test_bad_input_is_an_error(matrix: np.ndarray, sigma2: float | None, message: str) -> None:
    with pytest.raises(rf.RankfoldError, match=message):
        rf.evbmf(matrix, sigma2=sigma2)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (1j * np.ones((4, 5)), "it is complex"),
        (np.array([["a", "b"]]), "no matrix of real numbers"),
        ([[1.0, 2.0], [3.0]], "no matrix of real numbers"),
    ],
    ids=["complex", "text", "ragged"],
)
def test_what_is_no_matrix_of_real_numbers_is_an_error(matrix: Any, message: str) -> None:
    with pytest.raises(rf.RankfoldError, match=message):
        rf.evbmf(matrix)
