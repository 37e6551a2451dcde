"""Moved to `rankfold.plugins`; this name goes with the next release."""

import warnings

from rankfold.plugins import *  # noqa: F403 - the names it had

warnings.warn("rankfold.contracts has moved to rankfold.plugins", DeprecationWarning, stacklevel=2)
