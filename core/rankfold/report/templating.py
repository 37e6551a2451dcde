"""The templates of the package: everything that they are given is escaped."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from rankfold.errors import RankfoldError

if TYPE_CHECKING:
    from jinja2 import Environment


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the environment that loads templates.

    Raises:
        RankfoldError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise RankfoldError("the report needs Jinja2: pip install 'rankfold[report]'") from error
    loader = PackageLoader("rankfold.report", "pages")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
