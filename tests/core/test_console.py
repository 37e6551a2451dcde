"""Texts that people read."""

from __future__ import annotations

import random

import pytest

from rankfold.console import natural_order


@pytest.mark.parametrize(
    "names",
    [
        ["layers.9.weight", "layers.10.weight", "layers.100.weight"],
        ["a", "a.2", "a.2.b", "a.11", "b1c2", "b1c10", "b02", "b10"],
        ["", "1", "2", "x"],
        [f"a{'9' * 5000}", f"a1{'0' * 5000}"],
    ],
)
def test_names_are_sorted_by_the_numbers_in_them(names: list[str]) -> None:
    shuffled = names[:]
    random.Random(0).shuffle(shuffled)
    assert sorted(shuffled, key=natural_order) == names
