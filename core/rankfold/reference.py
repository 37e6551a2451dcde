"""Moved to `rankfold.ops.reference`; this name goes with the next release."""

import warnings

from rankfold.ops.reference import *  # noqa: F403 - the names it had

warnings.warn(
    "rankfold.reference has moved to rankfold.ops.reference", DeprecationWarning, stacklevel=2
)
