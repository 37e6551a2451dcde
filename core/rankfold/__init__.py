"""Makes trained neural networks smaller and faster by low-rank decomposition of their layers."""

from rankfold.candidates import Layer
from rankfold.checkpoint import load
from rankfold.contracts import Choice
from rankfold.decompose.channel_svd import channel_svd
from rankfold.decompose.cp import cp, cp3
from rankfold.decompose.spatial_svd import spatial_svd
from rankfold.decompose.svd import truncated_svd
from rankfold.decompose.tucker2 import tucker2
from rankfold.errors import RankfoldError
from rankfold.moments import Moments
from rankfold.ops import Conv, ConvTranspose, Embedding, Linear
from rankfold.pipeline import Compressed, apply, compress, gather, plan
from rankfold.plan import LayerPlan, Plan
from rankfold.policies.budget import Budget
from rankfold.policies.energy import Energy
from rankfold.policies.evbmf import EVBMF, evbmf
from rankfold.policies.ranks import Ranks
from rankfold.policies.ratio import Ratio
from rankfold.policies.vbmf import VBMF
from rankfold.stored.compression import compress_checkpoint

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
    "Layer",
    "LayerPlan",
    "Linear",
    "Moments",
    "Plan",
    "RankfoldError",
    "Ranks",
    "Ratio",
    "apply",
    "channel_svd",
    "compress",
    "compress_checkpoint",
    "cp",
    "cp3",
    "evbmf",
    "gather",
    "load",
    "plan",
    "spatial_svd",
    "truncated_svd",
    "tucker2",
]
