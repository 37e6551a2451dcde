"""Layer rules for Hugging Face transformers: a plugin that uses the public plugin API alone."""

from collections.abc import Iterable

from rankfold.hookspecs import LayerRule, ParameterRule, Rule, hookimpl
from rankfold_transformers.stored import EXPERTS, TENSOR_RULES

RANKFOLD_API = (1, 0)


@hookimpl
def rankfold_layer_rules() -> Iterable[Rule]:
    """Teaches `Conv1D`, Falcon's `Linear` and experts, in PyTorch models and in checkpoints."""
    return (
        LayerRule(
            adapter="torch",
            layer="transformers.pytorch_utils:Conv1D",
            read="rankfold_transformers.conv1d:read",
        ),
        LayerRule(
            adapter="torch",
            layer="transformers.models.falcon.modeling_falcon:FalconLinear",
            read="rankfold_transformers.falcon:read",
        ),
        ParameterRule("torch", "transformers.models.*:*Experts", EXPERTS),
        ParameterRule("torch", "transformers.models.*:*ParallelExperts", ("weight",)),
        *TENSOR_RULES,
    )
