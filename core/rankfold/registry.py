"""Moved to `rankfold.plugins.registry`; this name goes with the next release."""

import warnings

from rankfold.plugins.registry import *  # noqa: F403 - the names it had
from rankfold.plugins.registry import registry  # noqa: F401 - same

warnings.warn(
    "rankfold.registry has moved to rankfold.plugins.registry", DeprecationWarning, stacklevel=2
)
