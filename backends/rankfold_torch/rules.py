"""Moved to `rankfold_torch.layers`; this name goes with the next release."""

import warnings

from rankfold_torch.layers import read_same, read_standardised  # noqa: F401 - the names it had

# At import, by `stacklevel` at the line that imports.
warnings.warn(
    "rankfold_torch.rules has moved to rankfold_torch.layers", DeprecationWarning, stacklevel=2
)
