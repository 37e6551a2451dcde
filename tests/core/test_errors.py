"""Errors travel between processes, and what they quote stays short."""

from __future__ import annotations

import pickle

from rankfold.console import message
from rankfold.errors import Infeasible, RankfoldError, UnfinishedError


def test_an_error_is_the_same_in_another_process() -> None:
    for error in (Infeasible("too little", 1.25), RankfoldError("no"), UnfinishedError("again")):
        other = pickle.loads(pickle.dumps(error))
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)


def test_a_long_text_is_cut_once() -> None:
    for text in ("x" * 100_000, "\x1b" * 3_999, "y" * 4_001):
        cut = message(text + "the remedy")
        assert len(cut) <= 4_000
        assert cut.endswith("the remedy")
        assert message(cut) == cut
