from __future__ import annotations

import numpy as np
import pytest
from tests.core.decompose.factorizations import spectral

import rankfold as rf
from rankfold.decompose.channel_svd import CHANNEL_SVD, channel_svd
from rankfold.decompose.spectrum import Spectrum
from rankfold.ops import Conv, ConvTranspose, Embedding, Linear
from rankfold.ops.reference import reconstruct


def test_the_chain_is_the_best_of_the_unfolding_of_each_group(rng: np.random.Generator) -> None:
    op = Conv(spectral(rng, 22, 5, 3, 2), groups=2)
    dense = reconstruct(op, channel_svd(op, 4))
    for group in (slice(0, 11), slice(11, 22)):
        unfolding = op.weight[group].reshape(11, -1)
        left, values, right = np.linalg.svd(unfolding, full_matrices=False)
        best = (left[:, :4] * values[:4]) @ right[:4]
        np.testing.assert_allclose(dense[group].reshape(11, -1), best, atol=1e-12)


@pytest.mark.parametrize("kind", [Conv, ConvTranspose])
def test_the_first_stage_has_kernel_and_geometry_and_the_last_is_pointwise(
    kind: type[Conv] | type[ConvTranspose], rng: np.random.Generator
) -> None:
    op = kind(spectral(rng, 11, 7, 3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    first, last = channel_svd(op, 6)
    assert type(first) is kind
    assert first.weight.shape == (6, 7, 3, 5)
    assert (first.stride, first.padding, first.dilation) == (op.stride, op.padding, op.dilation)
    assert type(last) is Conv
    assert last.weight.shape == (11, 6, 1, 1)
    assert last.stride == (1, 1)


def test_a_share_of_the_channels_is_one_of_the_outputs() -> None:
    op = Conv(np.random.default_rng(0).standard_normal((14, 5, 3)), groups=2)
    (unfolding,) = CHANNEL_SVD.modes(op, Spectrum(op))
    assert unfolding.channels == 7
    assert unfolding.sides == (7, 15)
    assert CHANNEL_SVD.max_ranks(op) == (7,)


@pytest.mark.parametrize("op", [Linear(np.ones((5, 7))), Embedding(np.ones((5, 7)))])
def test_what_is_no_convolution_is_refused(op: rf.Op) -> None:
    assert CHANNEL_SVD.refuse(op) == (
        f"channel_svd applies to convolutions, not to {type(op).__name__}; use svd"
    )
