from __future__ import annotations

import numpy as np
import pytest

from rankfold.errors import RankfoldError
from rankfold.ops import (
    Conv,
    ConvTranspose,
    Embedding,
    Linear,
    blank,
    describe,
    params,
)
from rankfold.ops.reference import forward
from rankfold.ops.transforms import (
    by_group,
    grouped,
    is_blank,
    mapped,
    of_groups,
    with_weight,
    without_geometry,
)


def test_an_op_is_described_in_short() -> None:
    assert describe(Linear(np.ones((5, 7)))) == "Linear 7→5"
    assert describe(Embedding(np.ones((9, 4)))) == "Embedding 9×4"
    op = Conv(np.ones((12, 7, 5, 3)), stride=(2, 1), dilation=2, groups=3)
    assert describe(op) == "Conv 21→12 5×3 stride 2×1 dilation 2×2 groups 3"


def test_groups_of_a_matrix_are_described() -> None:
    assert describe(Linear(np.ones((6, 5)), groups=3)) == "Linear 15→6 groups 3"


def test_a_part_of_the_groups_computes_its_part_of_the_layer(rng: np.random.Generator) -> None:
    op = Conv(rng.standard_normal((9, 4, 3)), rng.standard_normal(9), groups=3)
    x = rng.standard_normal((2, 12, 7))
    part = of_groups(op, [2, 0], 3)
    y = forward(op, x)
    expected = np.concatenate([y[:, 6:], y[:, :3]], axis=1)
    actual = forward(part, np.concatenate([x[:, 8:], x[:, :4]], axis=1))
    np.testing.assert_allclose(actual, expected)


def test_a_stage_with_more_groups_than_its_layer_keeps_them_together(
    rng: np.random.Generator,
) -> None:
    stage = Conv(rng.standard_normal((8, 1, 3)), groups=8)  # depthwise, of a layer of two groups
    part = of_groups(stage, [1], 2)
    assert part.groups == 4
    assert np.array_equal(part.weight, stage.weight[4:])


def test_a_table_has_no_groups() -> None:
    with pytest.raises(RankfoldError, match="a table has no groups"):
        of_groups(Embedding(np.ones((9, 4))), [0], 1)


def test_a_blank_weight_has_a_shape_and_takes_no_memory() -> None:
    op = Linear(blank(10**6, 10**6))
    assert is_blank(op)
    assert params(op) == 10**12
    assert not is_blank(Linear(np.zeros((5, 7))))


def test_a_function_is_applied_to_weight_and_bias() -> None:
    doubled = mapped(Linear(np.ones((2, 3)), np.ones(2)), lambda a: 2.0 * a)
    assert doubled.weight.sum() == 12.0
    assert doubled.bias is not None
    assert doubled.bias.sum() == 4.0
    assert mapped(Embedding(np.ones((2, 3))), lambda a: 2.0 * a).weight.sum() == 12.0


def test_another_weight_has_the_same_shape() -> None:
    op = Conv(np.ones((6, 4, 3)), np.ones(6), stride=2)
    other = with_weight(op, np.zeros((6, 4, 3)))
    assert isinstance(other, Conv)
    assert (other.stride, other.bias is op.bias, other.weight.any()) == ((2,), True, False)
    with pytest.raises(RankfoldError, match=r"shape \(6, 4, 2\) in place of \(6, 4, 3\)"):
        with_weight(op, np.zeros((6, 4, 2)))


@pytest.mark.parametrize("kind", [Conv, ConvTranspose])
def test_a_layer_without_geometry_keeps_its_arrays_and_groups(
    kind: type[Conv] | type[ConvTranspose],
) -> None:
    op = kind(np.ones((6, 4, 3)), np.ones(6), stride=2, padding=1, dilation=3, groups=2)
    bare = without_geometry(op)
    assert type(bare) is kind
    assert describe(bare) == f"{kind.__name__} 8→6 3 groups 2"
    assert bare.weight is op.weight
    assert bare.bias is op.bias


def test_arrays_are_split_by_group(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((6, 4, 3))
    op = Conv(weight, groups=2)
    assert np.array_equal(grouped(op)[1], weight[3:])
    assert np.array_equal(by_group(weight, 3)[2], weight[4:])
    assert grouped(Embedding(np.ones((9, 4)))).shape == (1, 9, 4)
