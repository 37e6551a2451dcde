"""The vocabulary: what it accepts, what it costs, and the reference forward."""

import numpy as np
import pytest
from scipy.signal import correlate

import rankfold as rf
from rankfold.ops import channels, describe, macs, output_extent, params
from rankfold.ops.reference import forward


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape)


BAD = {
    "text": (lambda: rf.Linear("weights"), "the weight is str"),
    "integers": (lambda: rf.Linear(np.ones((3, 4), int)), "the weight is int64"),
    "axes of a matrix": (lambda: rf.Linear(ones(3)), r"the layout is \(out, in/groups\)"),
    "groups of a matrix": (lambda: rf.Linear(ones(3, 4), groups=2), "2 groups do not divide 3"),
    "axes of a kernel": (lambda: rf.Conv(ones(3, 4)), r"\(out, in/groups, \*kernel\)"),
    "too many axes": (lambda: rf.Conv(ones(3, 4, 1, 1, 1, 1)), "1 to 3 kernel axes"),
    "bias": (lambda: rf.Linear(ones(3, 4), ones(4)), "bias is"),
    "stride 0": (lambda: rf.Conv(ones(3, 4, 2), stride=0), "stride 0; use an int or 1 ints"),
    "stride of another length": (lambda: rf.Conv(ones(3, 4, 2), stride=(1, 2)), "stride"),
    "dilation": (lambda: rf.Conv(ones(3, 4, 2), dilation=1.5), "dilation 1.5"),
    "negative padding": (lambda: rf.Conv(ones(3, 4, 2), padding=-1), "padding -1"),
    "unknown padding": (lambda: rf.Conv(ones(3, 4, 2), padding="full"), "padding 'full'"),
    "uneven pairs": (lambda: rf.Conv(ones(3, 4, 2), padding=((1, 2, 3),)), "padding"),
    "padding mode": (lambda: rf.Conv(ones(3, 4, 2), padding_mode="noise"), "'noise' is unknown"),
    "groups": (lambda: rf.Conv(ones(3, 4, 2), groups=2), "2 groups do not divide 3 outputs"),
    "no groups": (lambda: rf.Conv(ones(3, 4, 2), groups=0), "groups is 0"),
    "same transposed": (lambda: rf.ConvTranspose(ones(3, 4, 2), padding="same"), "not defined"),
    "output padding": (lambda: rf.ConvTranspose(ones(3, 4, 2), output_padding=-1), "output_p"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(rf.RankfoldError, match=message):
        make()


def test_geometry_may_be_written_short() -> None:
    short = rf.Conv(ones(3, 4, 5, 2), stride=2, padding=(1, 0), dilation=[3, 1])
    assert short.stride == (2, 2)
    assert short.padding == ((1, 1), (0, 0))
    assert short.dilation == (3, 1)
    assert rf.Conv(ones(3, 4, 5), padding="valid").padding == ((0, 0),)


def test_groups_may_be_an_integer_of_numpy() -> None:
    for op in (rf.Linear, rf.Conv, rf.ConvTranspose):
        weight = ones(4, 3) if op is rf.Linear else ones(4, 3, 2)
        groups = op(weight, groups=np.int64(2)).groups
        assert type(groups) is int
        assert groups == 2


OPS = {
    "plain": rf.Conv(ones(11, 7, 5, 3)),
    "all": rf.Conv(ones(12, 7, 5, 3), stride=(2, 3), padding=((2, 1), (0, 4)), groups=3),
    "same": rf.Conv(ones(11, 7, 4, 3), padding="same", stride=(2, 1), dilation=(1, 2)),
    "same lower": rf.Conv(ones(11, 7, 4, 3), padding="same_lower"),
    "reflect": rf.Conv(ones(11, 7, 4, 3), padding=2, padding_mode="reflect"),
    "transposed": rf.ConvTranspose(
        ones(12, 7, 4, 3), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=3
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_the_extent_is_that_of_the_reference_output(name: str) -> None:
    op = OPS[name]
    y = forward(op, np.ones((2, channels(op)[1], 13, 17)))
    assert output_extent(op, (2, 13, 17)) == (2, *y.shape[2:])
    assert y.shape[1] == channels(op)[0]


@pytest.mark.parametrize("name", OPS)
def test_macs_are_the_products_of_an_all_ones_layer(name: str) -> None:
    """With all weights and inputs 1 and "infinite" padding of ones, the output sums the MACs."""
    op = OPS[name]
    x = np.ones((2, channels(op)[1], 13, 17))
    counted = macs(op, (2, 13, 17))
    out = output_extent(op, (2, 13, 17))
    if isinstance(op, rf.Conv):
        per_output = op.weight[0].size
        assert counted == np.prod(out) * channels(op)[0] * per_output
    else:
        uncut = rf.ConvTranspose(op.weight, stride=op.stride, groups=op.groups)
        assert counted == forward(uncut, x).sum()


def test_costs_of_matrices_and_tables(rng: np.random.Generator) -> None:
    linear = rf.Linear(ones(5, 7), ones(5))
    assert params(linear) == 40
    assert macs(linear, (3, 2)) == 6 * 35
    assert macs(rf.Embedding(ones(9, 4)), (3, 2)) == 0
    assert params((linear, linear)) == 80


def test_an_input_smaller_than_the_kernel_is_an_error() -> None:
    with pytest.raises(rf.RankfoldError, match="size 3 along spatial axis 1"):
        output_extent(rf.Conv(ones(3, 4, 2, 5)), (1, 9, 3))
    with pytest.raises(rf.RankfoldError, match="needs"):
        output_extent(rf.Conv(ones(3, 4, 2, 5)), (1, 9))


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


def test_strided_same_padding_divides_the_size(rng: np.random.Generator) -> None:
    for size in range(5, 12):
        for stride in (1, 2, 3):
            op = rf.Conv(rng.standard_normal((2, 3, 4)), stride=stride, padding="same")
            assert output_extent(op, (1, size)) == (1, -(-size // stride))


def test_an_op_is_described_in_short() -> None:
    assert describe(rf.Linear(ones(5, 7))) == "Linear 7→5"
    assert describe(rf.Embedding(ones(9, 4))) == "Embedding 9×4"
    op = rf.Conv(ones(12, 7, 5, 3), stride=(2, 1), dilation=2, groups=3)
    assert describe(op) == "Conv 21→12 5×3 stride 2×1 dilation 2×2 groups 3"
