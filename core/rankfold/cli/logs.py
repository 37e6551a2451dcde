"""The log of a command: progress on standard error where that is no terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def progress_logged() -> Iterator[None]:
    """Write what the logger "rankfold" is told to standard error, unless there is a bar there."""
    logger = logging.getLogger("rankfold")
    # Handlers that are there already are somebody's who embeds this in a program.
    if sys.stderr is None or sys.stderr.isatty() or logger.hasHandlers():
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
