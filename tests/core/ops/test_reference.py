"""The reference forward is what SciPy and NumPy compute."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import correlate

import rankfold as rf
from rankfold.errors import RankfoldError
from rankfold.ops import (
    Conv,
    Embedding,
    Linear,
    output_extent,
)
from rankfold.ops.reference import composed, forward, reconstruct, relative_distance


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 1)])
def test_a_convolution_is_scipys_correlation(
    shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    weight, bias = rng.standard_normal((6, 3, *shape)), rng.standard_normal(6)
    x = rng.standard_normal((1, 3, *(9, 8, 7)[: len(shape)]))
    expected = np.stack([correlate(x[0], weight[o], mode="valid")[0] + bias[o] for o in range(6)])
    np.testing.assert_allclose(forward(rf.Conv(weight, bias), x)[0], expected)


@pytest.mark.parametrize(
    ("mode", "numpy_mode"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")]
)
def test_padding_modes_are_numpys(mode: str, numpy_mode: str, rng: np.random.Generator) -> None:
    weight, x = rng.standard_normal((4, 3, 3, 5)), rng.standard_normal((2, 3, 7, 8))
    padded = np.pad(x, ((0, 0), (0, 0), (2, 1), (0, 3)), mode=numpy_mode)
    op = rf.Conv(weight, padding=((2, 1), (0, 3)), padding_mode=mode)
    np.testing.assert_allclose(forward(op, x), forward(rf.Conv(weight), padded))


@pytest.mark.parametrize("groups", [1, 3])
def test_a_transposed_convolution_is_the_adjoint(groups: int, rng: np.random.Generator) -> None:
    geometry = {"stride": (2, 3), "padding": ((1, 0), (2, 1)), "dilation": (2, 1), "groups": groups}
    weight = rng.standard_normal((6, 9 // groups, 3, 4))
    x = rng.standard_normal((2, 9, 11, 13))
    y = forward(rf.Conv(weight, **geometry), x)
    split = weight.reshape(groups, 6 // groups, 9 // groups, 3, 4)
    turned = split.swapaxes(1, 2).reshape(9, 6 // groups, 3, 4)
    bare = rf.ConvTranspose(turned, **geometry)
    missing = [
        n - s for n, s in zip((11, 13), output_extent(bare, (2, *y.shape[2:]))[1:], strict=True)
    ]
    adjoint = rf.ConvTranspose(turned, **geometry, output_padding=missing)
    z = rng.standard_normal(y.shape)
    assert np.vdot(y, z) == pytest.approx(np.vdot(x, forward(adjoint, z)))


def test_a_grouped_matrix_is_block_diagonal(rng: np.random.Generator) -> None:
    op = Linear(rng.standard_normal((6, 5)), rng.standard_normal(6), groups=3)
    x = rng.standard_normal((2, 4, 15))
    whole = np.zeros((6, 15))
    for group in range(3):
        whole[2 * group : 2 * group + 2, 5 * group : 5 * group + 5] = op.weight[2 * group :][:2]
    np.testing.assert_allclose(forward(op, x), x @ whole.T + op.bias)


def test_a_table_is_looked_up_and_a_chain_goes_on_from_there(rng: np.random.Generator) -> None:
    table, last = Embedding(rng.standard_normal((9, 4))), Linear(rng.standard_normal((5, 4)))
    rows = np.array([[1, 8], [0, 1]])
    np.testing.assert_allclose(forward((table, last), rows), table.weight[rows] @ last.weight.T)
    dense = reconstruct(Embedding(np.ones((9, 5))), (table, last))
    np.testing.assert_allclose(dense, table.weight @ last.weight.T)


def test_a_composed_layer_has_the_dtype_of_the_layer_and_the_bias_of_the_chain(
    rng: np.random.Generator,
) -> None:
    op = Conv(rng.standard_normal((6, 4, 3)).astype(np.float32), stride=2)
    chain = (
        Conv(rng.standard_normal((2, 4, 3)), stride=2),
        Conv(rng.standard_normal((6, 2, 1)), rng.standard_normal(6)),
    )
    dense = composed(op, chain)
    assert isinstance(dense, Conv)
    assert dense.weight.dtype == np.float32
    assert dense.stride == (2,)
    x = rng.standard_normal((2, 4, 11))
    np.testing.assert_allclose(forward(dense, x), forward(chain, x), rtol=1e-4, atol=1e-5)


def test_stages_that_do_not_compose_are_an_error() -> None:
    op = Conv(np.ones((6, 4, 3)))
    with pytest.raises(RankfoldError, match="kernel along the same axis"):
        reconstruct(op, (Conv(np.ones((2, 4, 3))), Conv(np.ones((6, 2, 3)))))
    with pytest.raises(RankfoldError, match=r"shape \(7, 4, 3\) in place of \(6, 4, 3\)"):
        reconstruct(op, (Conv(np.ones((2, 4, 3))), Conv(np.ones((7, 2, 1)))))


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_the_distance_of_weights_is_relative_at_any_scale(
    scale: float, rng: np.random.Generator
) -> None:
    weight, other = rng.standard_normal((2, 5, 7))
    expected = np.linalg.norm(weight - other) / np.linalg.norm(weight)
    assert relative_distance(weight * scale, other * scale) == pytest.approx(expected)
