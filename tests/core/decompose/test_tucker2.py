from __future__ import annotations

import numpy as np
import pytest
import tensorly as tl
from tensorly.decomposition import partial_tucker
from tests.core.decompose.factorizations import distance, factored, spectral

import rankfold as rf
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.tucker2 import TUCKER2, partial_tucker2, tucker2
from rankfold.errors import RankfoldError
from rankfold.ops import Conv, ConvTranspose
from rankfold.ops.reference import reconstruct


@pytest.mark.parametrize("ranks", [(2, 3), (7, 5), (12, 9)])
def test_tucker2_is_no_worse_than_tensorly(
    ranks: tuple[int, int], rng: np.random.Generator
) -> None:
    weight = spectral(rng, 19, 13, 3, 3)
    (core, factors), _ = partial_tucker(weight, rank=list(ranks), modes=[0, 1], init="svd")
    theirs = distance(tl.tenalg.multi_mode_dot(core, factors, modes=[0, 1]), weight)
    assert factored(rf.Conv(weight), "tucker2", ranks).error <= theirs * 1.002
    assert distance(partial_tucker2(weight, ranks).to_tensor(), weight) <= theirs * 1.002


@pytest.mark.parametrize("shape", [(3000, 5, 1), (5, 3000, 1)])
def test_the_cost_of_a_thin_layer_is_that_of_its_thin_side(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    orders = []
    original = np.linalg.eigh

    def eigh(grams: np.ndarray) -> object:
        orders.append(grams.shape[-1])
        return original(grams)

    monkeypatch.setattr(np.linalg, "eigh", eigh)
    op = rf.Conv(rng.standard_normal(shape))
    chain = rf.tucker2(op, (5, 5))
    assert max(orders) == 5
    np.testing.assert_allclose(reconstruct(op, chain), op.weight, atol=1e-12)


def test_errors_of_pairs_of_ranks_are_those_of_the_unfolding_of_what_the_input_basis_keeps(
    rng: np.random.Generator,
) -> None:
    op = Conv(spectral(rng, 58, 41, 2, 1))
    spectrum = Spectrum(op)
    basis = spectrum.leading("input", op.weight.shape[1])
    errors = dict(TUCKER2.error_at_ranks(op, spectrum, 4))
    assert len(errors) > 40
    for (r_out, r_in), error in errors.items():
        kept = np.einsum("oip,ir->orp", spectrum.tensor[0], basis[0, :, :r_in])
        singular = np.linalg.svd(kept.reshape(len(kept), -1), compute_uv=False)
        least = spectrum.energy - (singular[:r_out] ** 2).sum()
        assert abs(error - least) < 1e-9 * spectrum.energy


def test_errors_of_a_pointwise_kernel_are_those_of_its_matrix(rng: np.random.Generator) -> None:
    op = Conv(spectral(rng, 13, 9, 1, 1))
    spectrum = Spectrum(op)
    squares = np.linalg.svd(spectrum.tensor[0, :, :, 0], compute_uv=False) ** 2
    for (r_out, r_in), error in TUCKER2.error_at_ranks(op, spectrum, 1):
        assert r_out == r_in
        assert error == pytest.approx(squares[r_out:].sum(), abs=1e-9 * spectrum.energy)


def test_a_matrix_is_better_served_by_svd() -> None:
    assert TUCKER2.surpassed(Conv(np.ones((5, 7, 1, 1)))) == "svd"
    assert TUCKER2.surpassed(Conv(np.ones((5, 7, 1, 2)))) is None
    assert TUCKER2.surpassed(ConvTranspose(np.ones((5, 7, 1)))) is None


def test_classical_outer_stages_are_orthonormal(rng: np.random.Generator) -> None:
    first, _, last = tucker2(Conv(spectral(rng, 11, 7, 3, 2)), (5, 4), placement="classical")
    rows, columns = first.weight[:, :, 0, 0], last.weight[:, :, 0, 0]
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(columns.T @ columns, np.eye(5), atol=1e-12)


def test_a_matrix_is_no_tensor_of_two_modes_and_a_kernel() -> None:
    with pytest.raises(RankfoldError, match=r"shape \(5, 7\); the layout is \(out, in"):
        partial_tucker2(np.ones((5, 7)), (2, 2))
