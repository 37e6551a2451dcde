from __future__ import annotations

from typing import Any

import numpy as np

from rankfold.ops import Linear
from rankfold.testing.visits import Visits

OP = Linear(np.ones((6, 4)), groups=2)


def test_a_visit_is_handed_to_the_function() -> None:
    seen: list[Any] = []
    visits = Visits(lambda *visit: seen.append(visit) or (OP,))  # type: ignore[func-returns-value]
    assert visits("0", None, None) == (OP,)
    assert visits("0", None, None, (1,)) == (OP,)
    assert seen == [("0", None, None), ("0", None, None, (1,))]


def test_the_basis_of_some_groups_is_a_part_of_it() -> None:
    basis = np.arange(24.0).reshape(3, 4, 2)
    visits = Visits(lambda *visit: (OP,), {"0": basis})
    assert visits.basis("0") is basis
    assert np.array_equal(visits.basis("0", (2, 0)), basis[[2, 0]])
    assert visits.basis("1") is None
    assert visits.basis("1", (0,)) is None
