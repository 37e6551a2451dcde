"""Moved to `rankfold.plugins`; this name goes with the next release."""

import warnings

from rankfold.adapters.base import Calibrates as DataAware  # noqa: F401 - as before
from rankfold.adapters.base import LayerVisitor as Visit  # noqa: F401 - same
from rankfold.adapters.tensor_rules import LayerTensor as Stored  # noqa: F401 - same
from rankfold.decompose.base import Factorization as Factored  # noqa: F401 - same
from rankfold.decompose.base import RankTuple as Ranks  # noqa: F401 - same
from rankfold.decompose.base import Unfolding as Mode  # noqa: F401 - same
from rankfold.plugins import *  # noqa: F403 - the names it had

warnings.warn("rankfold.contracts has moved to rankfold.plugins", DeprecationWarning, stacklevel=2)
