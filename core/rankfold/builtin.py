"""Declares rankfold's own decompositions and policies, as any other plugin does."""

from __future__ import annotations

from collections.abc import Iterable

from rankfold.decompose.base import Decomposition
from rankfold.decompose.channel_svd import CHANNEL_SVD
from rankfold.decompose.cp import CP3, CP4
from rankfold.decompose.interpolative import CHANNEL_SVD_ID, SVD_ID, TUCKER2_ID
from rankfold.decompose.spatial_svd import SPATIAL_SVD
from rankfold.decompose.svd import SVD
from rankfold.decompose.tucker2 import TUCKER2
from rankfold.plugins.hookspecs import hookimpl
from rankfold.policies.base import Policy
from rankfold.policies.budget import Budget
from rankfold.policies.energy import Energy
from rankfold.policies.ranks import Ranks
from rankfold.policies.ratio import Ratio
from rankfold.policies.vbmf import VBMF

RANKFOLD_API = (1, 0)


@hookimpl
def rankfold_decompositions() -> Iterable[Decomposition]:
    """Register the methods by the names that `methods=` takes."""
    # The order is that in which names are listed; which methods a call takes is not decided here.
    return SVD, TUCKER2, SPATIAL_SVD, CHANNEL_SVD, CP4, CP3, SVD_ID, CHANNEL_SVD_ID, TUCKER2_ID


@hookimpl
def rankfold_policies() -> Iterable[type[Policy]]:
    """Register the policies by the names that the command line takes."""
    return VBMF, Energy, Budget, Ratio, Ranks
