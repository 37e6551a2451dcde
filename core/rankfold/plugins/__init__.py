"""The names that plugins are written with: hooks, contracts, ops and errors, from one place.

A plugin's declaration module imports its names from here; where they live inside may change.
"""

from rankfold.adapters.base import (
    Adapter,
    BuildsInterpolations,
    Calibrates,
    Checked,
    CountsParameters,
    Distributed,
    Expands,
    Folding,
    LayerVisitor,
    NamesOutputs,
    NamesParts,
    ReadsLayers,
    Recalling,
    Structured,
    Times,
    Trace,
)
from rankfold.adapters.compressed_models import ExpandsInPlace, FollowsParameters, NamesStages
from rankfold.adapters.distils import Distils, Student
from rankfold.adapters.inputs import TakesArrays, TellsExamples
from rankfold.adapters.loading import Conversion, LoadsRenamed
from rankfold.adapters.tensor_rules import LayerTensor, StoresInterpolations, TensorRule
from rankfold.adapters.timing import medians
from rankfold.calibration.accumulators import (
    RelativeDistance,
    input_not_finite,
    moment_not_finite,
    regression_sums,
    sampled_positions,
)
from rankfold.calibration.batches import Calibration, examples, is_held_out
from rankfold.calibration.losses import Divergence, OutputReader
from rankfold.calibration.moments import (
    LayerMoments,
    RegressionSums,
    has_regression,
    input_form,
)
from rankfold.calibration.position_sample import PositionSample, position_sample
from rankfold.decompose.base import (
    CountsByFormula,
    Decomposition,
    EstimatesErrors,
    Factorization,
    Interpolates,
    NamesBetterMethod,
    Placement,
    RanksUnfoldings,
    RankTuple,
    RegressesLaterStages,
    Unfolding,
)
from rankfold.decompose.reduced_rank_regression import Regression
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Extent, Linear, Op
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.plugins.hookspecs import (
    API,
    AdapterSpec,
    Demo,
    FileFormat,
    LayerRule,
    ModelFile,
    ModelFolder,
    ParameterRule,
    Rule,
    hookimpl,
)
from rankfold.policies.base import (
    AllocatesModel,
    Allocation,
    AllowsInterpolation,
    Choice,
    DistilsModels,
    Judges,
    Outcome,
    Policy,
    SearchesModels,
    StatesScope,
)
from rankfold.policies.best_method import best_method

__all__ = [
    "API",
    "Adapter",
    "AdapterSpec",
    "AllocatesModel",
    "Allocation",
    "AllowsInterpolation",
    "BuildsInterpolations",
    "Calibrates",
    "Calibration",
    "Chain",
    "Checked",
    "Choice",
    "Conv",
    "ConvTranspose",
    "Conversion",
    "CountsByFormula",
    "CountsParameters",
    "Decomposition",
    "Demo",
    "Distils",
    "DistilsModels",
    "Distributed",
    "Divergence",
    "Embedding",
    "EstimatesErrors",
    "Expands",
    "ExpandsInPlace",
    "Extent",
    "Factorization",
    "FileFormat",
    "Folding",
    "FollowsParameters",
    "Interpolates",
    "Judges",
    "Layer",
    "LayerGroup",
    "LayerMoments",
    "LayerPlan",
    "LayerRule",
    "LayerTensor",
    "LayerVisitor",
    "Linear",
    "LoadsRenamed",
    "ModelFile",
    "ModelFolder",
    "NamesBetterMethod",
    "NamesOutputs",
    "NamesParts",
    "NamesStages",
    "Op",
    "Outcome",
    "OutputReader",
    "ParameterRule",
    "Placement",
    "Plan",
    "Policy",
    "PositionSample",
    "RankTuple",
    "RankfoldError",
    "RanksUnfoldings",
    "ReadsLayers",
    "Recalling",
    "Refused",
    "RegressesLaterStages",
    "Regression",
    "RegressionSums",
    "RelativeDistance",
    "Rule",
    "SearchesModels",
    "Spectrum",
    "StatesScope",
    "StoresInterpolations",
    "Structured",
    "Student",
    "TakesArrays",
    "TellsExamples",
    "TensorRule",
    "Times",
    "Trace",
    "Unfolding",
    "best_method",
    "examples",
    "has_regression",
    "hookimpl",
    "input_form",
    "input_not_finite",
    "is_held_out",
    "medians",
    "moment_not_finite",
    "position_sample",
    "regression_sums",
    "sampled_positions",
]
