from __future__ import annotations

import math

import numpy as np
import pytest
from tensorly.decomposition import partial_tucker

from rankfold.decompose.hooi import hooi
from rankfold.decompose.spectrum import Spectrum
from rankfold.linalg import Array
from rankfold.ops import Conv

MOST_EXCESS = 5e-4  # of the error, above that of TensorLy


def kernel(shape: tuple[int, ...], decay: float, noise: float) -> Array:
    """Draw a kernel whose channel modes fall off by a power law, under noise."""
    rng = np.random.default_rng(5)
    out, into, *sizes = shape
    left, right = (
        np.linalg.qr(rng.standard_normal((size, size)))[0] * np.arange(1, size + 1.0) ** -decay
        for size in (out, into)
    )
    slices = left @ rng.standard_normal((math.prod(sizes), out, into)) @ right.T
    weight = slices.transpose(1, 2, 0).reshape(shape)
    return weight / weight.std() + noise * rng.standard_normal(shape)


def dense(core: Array, left: Array, right: Array) -> Array:
    return np.einsum("goa,gabp,gib->goip", left, core, right, optimize=True)


def error_of(spectrum: Spectrum, ranks: tuple[int, int]) -> float:
    model = dense(*hooi(spectrum, ranks))
    return float(np.linalg.norm(model - spectrum.tensor) / np.linalg.norm(spectrum.tensor))


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ((256, 192, 3, 3), (80, 64)),
        ((96, 48, 5, 5), (32, 16)),
        ((48, 96, 5, 5), (16, 32)),
        ((320, 80, 3, 3), (80, 24)),
        ((64, 96, 7, 7), (24, 31)),
        ((130, 110, 3), (40, 31)),
        ((64, 48, 3, 3, 3), (24, 19)),
        ((31, 23, 3, 3), (9, 5)),
    ],
)
@pytest.mark.parametrize(("decay", "noise"), [(0.5, 0.1), (1.0, 0.01)])
def test_the_error_is_that_of_tensorly(
    shape: tuple[int, ...], ranks: tuple[int, int], decay: float, noise: float
) -> None:
    weight = kernel(shape, decay, noise)
    spectrum = Spectrum(Conv(weight))
    (core, (left, right)), _ = partial_tucker(weight, list(ranks), modes=[0, 1], init="svd")
    core = core.reshape(1, *ranks, -1)
    theirs = spectrum.distance(
        dense(core, left[None], right[None]).reshape(spectrum.rows.shape) / spectrum.scale
    )
    assert error_of(spectrum, ranks) <= theirs * (1.0 + MOST_EXCESS)


@pytest.mark.parametrize("shape", [(47, 31, 3, 3), (150, 120, 3, 3)])
def test_factors_are_orthonormal_and_the_core_is_the_projection(shape: tuple[int, ...]) -> None:
    spectrum = Spectrum(Conv(kernel(shape, 0.5, 0.1)))
    core, left, right = hooi(spectrum, (19, 13))
    for factor in (left, right):
        np.testing.assert_allclose(factor.mT @ factor, np.eye(factor.shape[2])[None], atol=1e-5)
    expected = np.einsum("goa,goip,gib->gabp", left, spectrum.tensor, right, optimize=True)
    np.testing.assert_allclose(core, expected, atol=1e-5 * math.sqrt(spectrum.energy))


def test_a_large_kernel_of_low_rank_is_recovered_beyond_float32() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((150, 19)), rng.standard_normal((120, 13))
    weight = np.einsum("oa,abp,ib->oip", left, rng.standard_normal((19, 13, 9)), right)
    assert error_of(Spectrum(Conv(weight.reshape(150, 120, 3, 3))), (19, 13)) < 1e-8


def test_eigenpairs_at_hand_change_no_bit() -> None:
    weight = kernel((150, 120, 3, 3), 0.5, 0.1)
    fresh, used = Spectrum(Conv(weight)), Spectrum(Conv(weight))
    used.eigen("input")
    used.values("output")
    for expected, actual in zip(hooi(fresh, (40, 31)), hooi(used, (40, 31)), strict=True):
        assert (expected == actual).all()


def test_groups_are_factored_each_by_itself() -> None:
    weight = kernel((62, 23, 3, 3), 0.5, 0.1)
    together = hooi(Spectrum(Conv(weight, groups=2)), (7, 5))
    scale = np.abs(weight).max()
    for group in range(2):
        part = weight[31 * group : 31 * (group + 1)]
        alone = Spectrum(Conv(part))
        model = dense(*(factor[group : group + 1] for factor in together)) * scale
        error = np.linalg.norm(model.reshape(part.shape) - part) / np.linalg.norm(part)
        assert error == pytest.approx(error_of(alone, (7, 5)), rel=MOST_EXCESS)
