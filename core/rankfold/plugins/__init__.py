"""What plugins are written with: hooks, contracts, ops and errors, from one place.

A plugin's declaration module imports its names from here; where they live inside may change.
"""

from rankfold.adapters.base import (
    Adapter,
    Checked,
    DataAware,
    Distributed,
    Folding,
    NamesOutputs,
    Recalling,
    Structured,
    Trace,
    Visit,
)
from rankfold.adapters.tensor_rules import Stored, TensorRule
from rankfold.decompose.base import Decomposition, Factored, Mode, Placement, RankTuple
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.layer import Layer
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Extent, Linear, Op
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.plugins.hookspecs import (
    API,
    AdapterSpec,
    LayerRule,
    ParameterRule,
    Rule,
    hookimpl,
)
from rankfold.policies.base import Choice, Judges, Policy
from rankfold.policies.best_method import least_error

__all__ = [
    "API",
    "Adapter",
    "AdapterSpec",
    "Chain",
    "Checked",
    "Choice",
    "Conv",
    "ConvTranspose",
    "DataAware",
    "Decomposition",
    "Distributed",
    "Embedding",
    "Extent",
    "Factored",
    "Folding",
    "Judges",
    "Layer",
    "LayerPlan",
    "LayerRule",
    "Linear",
    "Mode",
    "NamesOutputs",
    "Op",
    "ParameterRule",
    "Placement",
    "Plan",
    "Policy",
    "RankTuple",
    "RankfoldError",
    "Recalling",
    "Refused",
    "Rule",
    "Spectrum",
    "Stored",
    "Structured",
    "TensorRule",
    "Trace",
    "Visit",
    "hookimpl",
    "least_error",
]
