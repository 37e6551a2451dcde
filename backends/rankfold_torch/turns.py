"""Moved to `rankfold_torch.paired_run`; this name goes with the next release."""

import warnings

from rankfold_torch.paired_run.coroutine_threads import CoroutineThread as Turn  # noqa: F401

# At import, by `stacklevel` at the line that imports.
warnings.warn(
    "rankfold_torch.turns has moved to rankfold_torch.paired_run", DeprecationWarning, stacklevel=2
)
