from __future__ import annotations

import numpy as np
import pytest

import rankfold as rf
from rankfold.ops import (
    Conv,
    Cost,
    channels,
    macs,
    output_extent,
    params,
)
from rankfold.ops.reference import forward


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape)


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


def test_costs_are_added_and_compared_count_by_count() -> None:
    cost = Cost(7, 20) + Cost(3, 5)
    assert cost == Cost(10, 25)
    assert cost.less(Cost(3, 5)) == Cost(7, 20)
    assert Cost(10, 24).within(cost)
    assert cost.within(cost)
    assert not Cost(11, 1).within(cost)
    assert not Cost(1, 26).within(cost)


def test_the_macs_of_a_chain_are_those_of_its_stages_at_their_extents() -> None:
    chain = (Conv(ones(4, 7, 1, 1)), Conv(ones(5, 4, 3, 2), stride=(2, 3)), Conv(ones(9, 5, 1, 1)))
    extent = (2, 13, 17)
    total = 0
    for stage in chain:
        total += macs(stage, extent)
        extent = output_extent(stage, extent)
    assert macs(chain, (2, 13, 17)) == total
