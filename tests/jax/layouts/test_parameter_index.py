"""Places of a layer's numbers among those of an array, for every layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rankfold.errors import Refused
from rankfold.ops import of_groups
from rankfold_jax.layouts.conv import ConvForm, TransposedForm
from rankfold_jax.layouts.dense import DenseForm, EinsumForm, EmbedForm
from rankfold_jax.layouts.parameter_index import ParameterIndex
from rankfold_jax.layouts.stacks import StackedAxes


def index_of(
    form: Any, shape: tuple[int, ...], bias: tuple[int, ...], stacked: int = 0
) -> ParameterIndex:
    stack, behind = StackedAxes(), StackedAxes()
    if stacked:
        stack, behind = StackedAxes((1,), (stacked,)), StackedAxes((0,), (stacked,))
    return ParameterIndex(form, 0, shape, stack, 1, bias, behind)


INDEXES = {
    "dense": index_of(DenseForm((5,), (7,)), (5, 7), (7,)),
    "stack": index_of(DenseForm((5,), (7,)), (5, 3, 7), (3, 7), 3),
    "einsum": index_of(EinsumForm("bgi,oig->bgo", (7, 5, 3), (3, 7)), (7, 5, 3), (3, 7)),
    "conv": index_of(ConvForm((3,), 6, 4, (1,), "SAME", (1,), 2), (3, 3, 4), (4,)),
    "transposed": index_of(
        TransposedForm((3, 2), 6, 4, (1, 1), "SAME", (1, 1), True), (3, 2, 4, 6), (4,)
    ),
}
RNG = np.random.default_rng(0)


def arrays(index: ParameterIndex) -> tuple[np.ndarray, np.ndarray]:
    return RNG.standard_normal(index.shape), RNG.standard_normal(index.bias_shape)


def op_of(index: ParameterIndex, kernel: Any, bias: Any) -> Any:
    return index.form.op(index.stack.to_front(kernel), index.bias_stack.to_front(bias))


@pytest.mark.parametrize("name", INDEXES)
def test_numbers_go_back_to_where_the_form_reads_them_from(name: str) -> None:
    index = INDEXES[name]
    kernel, bias = arrays(index)
    op = op_of(index, kernel, bias)
    np.testing.assert_array_equal(kernel.reshape(-1)[index.places], op.weight)
    np.testing.assert_array_equal(index.numbers[index.places.reshape(-1)], np.arange(kernel.size))
    filled = index.filled(op)
    np.testing.assert_array_equal(filled[0], kernel)
    np.testing.assert_array_equal(filled[1], bias)  # type: ignore[arg-type]


def test_some_groups_of_a_stack_are_filled_alone() -> None:
    index = INDEXES["stack"]
    assert index.groups == 3
    kernel, bias = arrays(index)
    op = op_of(index, *arrays(index))
    before = kernel.copy(), bias.copy()
    index.fill(kernel, bias, of_groups(op, [2, 0], 3), [2, 0])
    expected = index.filled(op)
    np.testing.assert_array_equal(kernel[:, [0, 2]], expected[0][:, [0, 2]])
    np.testing.assert_array_equal(kernel[:, 1], before[0][:, 1])
    np.testing.assert_array_equal(bias[[0, 2]], expected[1][[0, 2]])  # type: ignore[index]
    np.testing.assert_array_equal(bias[1], before[1][1])


def test_an_op_of_another_shape_is_refused() -> None:
    index = INDEXES["dense"]
    op = op_of(index, *arrays(index))
    with pytest.raises(Refused):
        index.filled(replace(op, weight=op.weight[:, :4]))


def test_a_table_has_no_bias() -> None:
    index = ParameterIndex(EmbedForm(11, 4), 3, (11, 4), StackedAxes())
    table = RNG.standard_normal((11, 4))
    kernel, bias = index.filled(index.form.op(table[None], None))
    assert bias is None
    np.testing.assert_array_equal(kernel, table)
