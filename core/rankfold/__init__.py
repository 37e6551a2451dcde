"""Makes trained neural networks smaller and faster by low-rank decomposition of their layers."""

from importlib.metadata import version

from rankfold.checkpoints.compress import compress_checkpoint
from rankfold.decompose.channel_svd import channel_svd
from rankfold.decompose.cp import cp, cp3
from rankfold.decompose.evbmf import EVBMF, evbmf
from rankfold.decompose.spatial_svd import spatial_svd
from rankfold.decompose.svd import truncated_svd
from rankfold.decompose.tucker2 import tucker2
from rankfold.errors import RankfoldError
from rankfold.layers.layer import Layer
from rankfold.ops import Conv, ConvTranspose, Embedding, Linear
from rankfold.pipeline.api import apply, compress, gather, plan
from rankfold.pipeline.distil import distil
from rankfold.pipeline.gradual import Gradual
from rankfold.pipeline.result import Compressed
from rankfold.pipeline.sensitivity import sensitivity
from rankfold.pipeline.stages import stages
from rankfold.pipeline.tradeoff import tradeoff
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.plan.sensitivities import LayerScore, Sensitivities
from rankfold.plan.tradeoff import Tradeoff
from rankfold.policies.base import Choice
from rankfold.policies.budget import Budget
from rankfold.policies.energy import Energy
from rankfold.policies.ranks import Ranks
from rankfold.policies.ratio import Ratio
from rankfold.policies.vbmf import VBMF
from rankfold.storage.folder import load
from rankfold.storage.moments_file import Moments

__version__ = version("rankfold")

__all__ = [
    "EVBMF",
    "VBMF",
    "Budget",
    "Choice",
    "Compressed",
    "Conv",
    "ConvTranspose",
    "Embedding",
    "Energy",
    "Gradual",
    "Layer",
    "LayerPlan",
    "LayerScore",
    "Linear",
    "Moments",
    "Plan",
    "RankfoldError",
    "Ranks",
    "Ratio",
    "Sensitivities",
    "Tradeoff",
    "apply",
    "channel_svd",
    "compress",
    "compress_checkpoint",
    "cp",
    "cp3",
    "distil",
    "evbmf",
    "gather",
    "load",
    "plan",
    "sensitivity",
    "spatial_svd",
    "stages",
    "tradeoff",
    "truncated_svd",
    "tucker2",
]


def __dir__() -> list[str]:
    """Names that users are to see; the folders inside are reached by name all the same."""
    return [*__all__, "__version__"]
