"""Settings are told apart by what they are, not by where they lie in memory."""

import functools
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

import rankfold as rf
from rankfold.checkpoints.descriptions import description


class Plain:
    def __init__(self, share: float) -> None:
        self.share = share
        self.inner = rf.Energy(share)


@dataclass
class Silent:
    share: float = field(repr=False)


def shaped(share: float) -> float:
    return share


class Slotted:
    __slots__ = ("share",)

    def __init__(self, share: float) -> None:
        self.share = share


def test_what_has_no_dictionary_is_taken_for_nothing_else() -> None:
    first, second = Slotted(0.25), Slotted(0.5)
    assert description(first) != description(second)


MAKERS = {
    "a class without a repr": Plain,
    "a field without a repr": Silent,
    "in a mapping": lambda share: {"a": Plain(share)},
    "in a tuple": lambda share: (1, Plain(share)),
    "an array": lambda share: np.full(3000, share),
    "a built-in policy": rf.Energy,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_equal_settings_have_one_description_and_others_another(make) -> None:
    assert description(make(0.25)) == description(make(0.25))
    assert description(make(0.25)) != description(make(0.5))


def test_order_and_kinds_count() -> None:
    different = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, (1, 2), [1, 2], [1, 2.0], [True, 2], "[1, 2]"]
    assert len({description(value) for value in different}) == len(different)


def test_functions_are_known_by_their_names_unless_others_have_them() -> None:
    assert description(shaped) == f"{__name__}.shaped"
    first, second = (lambda number=number: number for number in range(2))
    assert description(first) != description(second)
    with_arguments = [functools.partial(shaped, share) for share in (0.25, 0.5)]
    assert len(set(map(description, with_arguments))) == 2


def test_what_holds_itself_has_a_description() -> None:
    plain = Plain(0.5)
    plain.itself = plain
    assert description(plain) == description(plain)


def test_a_description_is_that_of_another_process() -> None:
    code = (
        "import rankfold as rf; from rankfold.checkpoints.descriptions import description; "
        "print(description([rf.Ranks({'a': 3}), {'x', 'y', 'z'}, rf.Budget]))"
    )
    texts = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(texts) == 1
    assert b" at 0x" not in texts.pop()
