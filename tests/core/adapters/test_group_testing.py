"""Layers that a fault of a whole model comes from are found by runs with some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from rankfold.adapters.group_testing import blamed

PATHS = [str(n) for n in range(23)]
FAULTS: dict[str, tuple[Callable[[Sequence[str]], str], set[str]]] = {
    "nothing": (lambda some: "", set()),
    "one layer": (lambda some: "fails" if "11" in some else "", {"11"}),
    "two layers": (lambda some: "fails" if {"3", "19"} & set(some) else "", {"3", "19"}),
    "every layer": (lambda some: "fails" if some else "", set(PATHS)),
    # No half is to blame by itself, so nothing says which layer of the group it is.
    "both halves together": (
        lambda some: "fails" if {"0", "22"} <= set(some) else "",
        set(PATHS),
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_the_layers_of_a_fault_are_blamed_within_a_bounded_number_of_runs(case: str) -> None:
    fault, expected = FAULTS[case]
    runs: list[Sequence[str]] = []

    def counted(some: Sequence[str]) -> str:
        runs.append(some)
        return fault(some)

    left = blamed(PATHS, counted)
    assert left == dict.fromkeys(left, "fails")
    assert expected <= left.keys()
    if len(expected) == 1:
        assert left.keys() == expected
    assert len(runs) <= 19
    rest = [path for path in PATHS if path not in left]
    assert not fault(rest)
