"""Moved to `rankfold.plugins`; this name goes with the next release."""

import warnings

from rankfold.plugins.hookspecs import *  # noqa: F403 - the names it had
from rankfold.plugins.hookspecs import API, PROJECT, hookimpl, hookspec  # noqa: F401 - same

warnings.warn("rankfold.hookspecs has moved to rankfold.plugins", DeprecationWarning, stacklevel=2)
