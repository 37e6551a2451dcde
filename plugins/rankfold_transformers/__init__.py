"""Layer rules for Hugging Face transformers: a plugin that uses the public plugin API alone."""

from collections.abc import Iterable

from rankfold.hookspecs import LayerRule, ParameterRule, Rule, hookimpl
from rankfold_transformers.stored import EXPERTS, TENSOR_RULES

RANKFOLD_API = (1, 1)


@hookimpl
def rankfold_layer_rules() -> Iterable[Rule]:
    """Teaches `Conv1D`, Falcon's `Linear`, BiT's convolutions and experts, stored ones too."""
    return (
        LayerRule(
            adapter="torch",
            layer="transformers.pytorch_utils:Conv1D",
            read="rankfold_transformers.conv1d:read",
        ),
        LayerRule(
            adapter="torch",
            layer="transformers.models.falcon.modeling_falcon:FalconLinear",
            read="rankfold_torch.layers:read",
        ),
        LayerRule(
            adapter="torch",
            layer="transformers.models.bit.modeling_bit:WeightStandardizedConv2d",
            read="rankfold_transformers.standardised:read",
            folds="weight standardisation",
        ),
        ParameterRule("torch", "transformers.models.*:*Experts", EXPERTS),
        ParameterRule("torch", "transformers.models.*:*ParallelExperts", ("weight",)),
        *TENSOR_RULES,
    )
