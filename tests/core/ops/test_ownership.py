from __future__ import annotations

import numpy as np
import pytest

from rankfold.ops import (
    Linear,
    blank,
)
from rankfold.ops.ownership import copied, protected


def test_a_protected_layer_cannot_be_written_to_and_shares_its_memory() -> None:
    op = Linear(np.ones((3, 4)), np.ones(3))
    safe = protected(op)
    assert safe.bias is not None
    for array, original in ((safe.weight, op.weight), (safe.bias, op.bias)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2.0
        assert np.shares_memory(array, original)
    op.weight[0] = 5.0  # the owner may go on writing


def test_a_tensor_is_protected_by_a_copy() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.ones(3, 4)
    safe = protected(Linear(weight))
    safe.weight.zero_()
    assert bool(weight.all())


def test_a_copy_shares_no_memory_but_where_there_is_none() -> None:
    op = Linear(np.ones((3, 4)), np.ones(3))
    copy = copied(op)
    assert not np.shares_memory(copy.weight, op.weight)
    assert not np.shares_memory(copy.bias, op.bias)
    empty = Linear(blank(10**6, 10**6))
    assert copied(empty).weight is empty.weight
