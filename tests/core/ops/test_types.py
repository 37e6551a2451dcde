"""The vocabulary, and what it accepts."""

import numpy as np
import pytest

import rankfold as rf


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


def test_groups_may_be_an_integer_of_numpy() -> None:
    for op in (rf.Linear, rf.Conv, rf.ConvTranspose):
        weight = ones(4, 3) if op is rf.Linear else ones(4, 3, 2)
        groups = op(weight, groups=np.int64(2)).groups
        assert type(groups) is int
        assert groups == 2
