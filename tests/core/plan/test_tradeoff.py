"""The curve of cost against loss: read in both directions, and its forms."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import msgspec
import pytest

import rankfold as rf
from rankfold.plan.tradeoff import Tradeoff

CURVE = Tradeoff(
    resource="macs",
    measure="error",
    points=((1.0, 0.0), (0.6, 0.1), (0.2, 0.5)),
    plan=(0.6, 0.1),
)


def test_it_is_read_in_both_directions() -> None:
    assert CURVE.loss_at(0.8) == pytest.approx(0.05)
    assert CURVE.share_at(0.3) == pytest.approx(0.4)
    assert (CURVE.loss_at(1.0), CURVE.loss_at(0.2)) == (0.0, 0.5)
    assert (CURVE.share_at(0.0), CURVE.share_at(9.0)) == (1.0, 0.2)


@pytest.mark.parametrize("share", [0.1, 1.1, float("nan")])
def test_what_is_not_on_offer_is_an_error(share: float) -> None:
    with pytest.raises(rf.RankfoldError, match=r"loss_at: share .*from 0.2, the cheapest"):
        CURVE.loss_at(share)


@pytest.mark.parametrize("loss", [-1, float("nan"), "a"])
def test_a_loss_that_is_none_is_an_error(loss: Any) -> None:
    with pytest.raises(rf.RankfoldError, match=f"share_at: loss {loss!r}"):
        CURVE.share_at(loss)


def test_it_is_shown_in_a_line_and_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(CURVE) == (
        "Tradeoff(3 points of predicted error against macs, down to a share of 0.2 with 0.5)"
    )
    shown = CURVE._repr_html_()
    assert shown is not None
    assert "<td>60.0%</td><td>0.1</td>" in shown
    pandas = ModuleType("pandas")
    pandas.DataFrame = lambda rows, columns: (rows, columns)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert CURVE.to_pandas() == (list(CURVE.points), ["share", "loss"])


def test_a_curve_from_elsewhere_is_checked() -> None:
    bad = Tradeoff(resource="macs", measure="error", points=((1.0, float("nan")),), plan=(1.0, 0.0))
    with pytest.raises(rf.RankfoldError, match="the plan: tradeoff holds nan"):
        rf.apply(None, rf.Plan(layers=(), tradeoff=bad))
    empty = msgspec.structs.replace(bad, points=())
    with pytest.raises(rf.RankfoldError, match="tradeoff holds no points"):
        rf.apply(None, rf.Plan(layers=(), tradeoff=empty))
