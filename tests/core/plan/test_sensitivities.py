"""Scores of single layers in every form: as a sequence, a table, a data frame, comma-separated."""

from __future__ import annotations

import csv
import io
import sys
from types import ModuleType

import pytest

import rankfold as rf
from rankfold.plan.sensitivities import LayerScore, Sensitivities


def score(path: str, share: float, drop: float) -> LayerScore:
    return LayerScore(path, "svd", (7, 5), share, 0.1, 0.2, 0.9 - drop, drop)


def result() -> Sensitivities:
    scores = score("a", 0.5, 0.01), score("a", 0.25, 0.02), score("b", 0.5, 0.3)
    return Sensitivities(scores, 0.9, "params", {"c": "tied"})


def test_it_is_a_sequence_with_the_scores_of_each_layer() -> None:
    assert len(result()) == 3
    assert [item.path for item in result()] == ["a", "a", "b"]
    assert [item.share for item in result().of("a")] == [0.5, 0.25]
    assert [item.share for item in result()[1:]] == [0.25, 0.5]
    assert result().most_sensitive() == ["b", "a"]


def test_the_repr_is_a_line_and_the_text_a_table() -> None:
    assert repr(result()) == "Sensitivities(2 layers, original 0.9, most sensitive b, a)"
    text = str(result())
    for word in ("7, 5", "25.0%", "0.2000", "0.88", "not tried: 'c' (tied)"):
        assert word in text
    shown = result()._repr_html_()
    assert shown is not None
    assert shown.startswith("<details>")


def test_comma_separated_values_hold_every_score() -> None:
    rows = list(csv.DictReader(io.StringIO(result().to_csv())))
    assert [row["path"] for row in rows] == ["a", "a", "b"]
    assert [float(row["score"]) for row in rows] == [item.score for item in result()]
    assert rows[0]["ranks"] == "7 5"


def test_a_data_frame_has_a_column_for_each_field(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = ModuleType("pandas")
    pandas.DataFrame = lambda rows, columns: (rows, columns)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    rows, columns = result().to_pandas()
    assert columns == ["path", "method", "ranks", "share", "saved", "error", "score", "drop"]
    assert rows[2] == ["b", "svd", (7, 5), 0.5, 0.1, 0.2, 0.9 - 0.3, 0.3]


def test_without_pandas_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(rf.RankfoldError, match="pip install pandas"):
        result().to_pandas()


def test_no_scores_are_a_result_too() -> None:
    nothing = Sensitivities((), 0.5, "macs", {})
    assert repr(nothing) == "Sensitivities(0 layers, original 0.5)"
    assert nothing.most_sensitive() == []
