"""Random generators that the whole process shares: Python's and NumPy's."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any


def process_states() -> dict[str, Any]:
    """Return the states of the generators that are in use, by name."""
    states: dict[str, Any] = {"python": random.getstate()}
    # NumPy loads its generators when they are first asked for.
    if "numpy.random" in sys.modules:
        states["numpy"] = sys.modules["numpy.random"].get_state()
    return states


def set_process_states(states: Mapping[str, Any]) -> None:
    """Put states back that `process_states` gave; other names are passed over."""
    if "python" in states:
        random.setstate(states["python"])
    if "numpy" in states:
        sys.modules["numpy.random"].set_state(states["numpy"])
