"""Objects of the user's code, named on the command line as package.module:name."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from rankfold.errors import RankfoldError
from rankfold.faults import told

_NAME = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def names_code(text: str) -> bool:
    """Return whether a text has the form package.module:name."""
    return _NAME.fullmatch(text) is not None


def imported(target: str, what: str = "function") -> Any:
    """Import "package.module:name"; the current folder can be imported from.

    Args:
        target: the name.
        what: it is of, for messages.

    Raises:
        RankfoldError: it cannot be imported.
    """
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise RankfoldError(f"{what} {target!r}; write package.module:{what}")
    # An installed script has the folder of the script on its path, not the current one, where the
    # user's module lies.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises on import
        raise RankfoldError(f"{what} {target!r} cannot be imported: {_cause(error)}") from error


def called(target: str, what: str = "function") -> Any:
    """Import "package.module:name" and call it without arguments.

    Raises:
        RankfoldError: it cannot be imported or raises.
    """
    function = imported(target, what)
    try:
        return function()
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        raise RankfoldError(f"{what} {target!r} failed: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r}); keep that out of what makes the model"
    return told(error)
