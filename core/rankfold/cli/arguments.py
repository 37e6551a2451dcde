"""Reading factories from the command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from rankfold.errors import RankfoldError
from rankfold.faults import told


def make_model(target: str) -> Any:
    """Call "package.module:factory"; the current folder can be imported from.

    Raises:
        RankfoldError: it cannot be imported or raises.
    """
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise RankfoldError(f"factory {target!r}; write package.module:factory")
    # An installed script has the folder of the script on its path, not the current one, where the
    # user's module lies.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises on import
        raise RankfoldError(f"factory {target!r} cannot be imported: {_cause(error)}") from error
    try:
        return factory()
    except (Exception, SystemExit) as error:  # whatever the user's factory raises
        raise RankfoldError(f"factory {target!r} failed: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r}); keep that out of what makes the model"
    return told(error)
