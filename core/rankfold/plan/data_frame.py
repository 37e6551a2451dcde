"""Tables for pandas, which is asked for only when somebody wants one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankfold.errors import RankfoldError


def data_frame(rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> Any:
    """Return a `pandas.DataFrame`.

    Raises:
        RankfoldError: pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise RankfoldError("to_pandas needs pandas: pip install pandas") from error
    return DataFrame(list(rows), columns=list(columns))
