from __future__ import annotations

import sys
import types

import pytest

from rankfold.errors import RankfoldError
from rankfold.plan.data_frame import data_frame


def test_rows_and_columns_are_given_to_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    def frame(rows: object, columns: object) -> tuple[object, object]:
        return rows, columns

    pandas = types.ModuleType("pandas")
    vars(pandas)["DataFrame"] = frame
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert data_frame(((1, "a"), (2, "b")), ("n", "t")) == ([(1, "a"), (2, "b")], ["n", "t"])


def test_without_pandas_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RankfoldError, match="to_pandas needs pandas: pip install pandas"):
        data_frame([], [])
