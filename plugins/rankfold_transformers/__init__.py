"""Hugging Face transformers: layer rules, and `from_pretrained` of compressed models.

The layer rules use the public plugin API alone. Importing this package makes "rankfold" known to
transformers, before or after transformers is imported, and imports no framework.
"""

from collections.abc import Iterable
from typing import Any

from rankfold.plan.plan import Plan
from rankfold.plugins import LayerRule, ModelFolder, ParameterRule, Rule, hookimpl
from rankfold_transformers.registration import is_registered, register
from rankfold_transformers.tensor_rules import EXPERTS, TENSOR_RULES

RANKFOLD_API = (1, 4)

# On import, as this module is what the entry point names: whoever has loaded the plugins of
# rankfold can open compressed models.
register()


@hookimpl
def rankfold_layer_rules() -> Iterable[Rule]:
    """Declare rules for `Conv1D`, Falcon's `Linear`, BiT's convolutions and experts."""
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
        # By pattern: each model has classes of its own for its experts, and names their stacks
        # alike.
        ParameterRule("torch", "transformers.models.*:*Experts", EXPERTS),
        ParameterRule("torch", "transformers.models.*:*ParallelExperts", ("weight",)),
        *TENSOR_RULES,
    )


@hookimpl
def rankfold_model_folders() -> Iterable[ModelFolder]:
    """Declare the folders that `from_pretrained` opens."""
    return (
        ModelFolder(
            name="transformers",
            model_types=("transformers.modeling_utils:PreTrainedModel",),
            settings=("model_type", "architectures"),
            weights="model",
            save="rankfold_transformers.folders:save",
            beside="rankfold_transformers.companions:beside",
            conversions="rankfold_transformers.folders:conversions",
            refusals="rankfold_transformers.folders:refusals",
            names="rankfold_transformers.folders:names",
        ),
    )


@hookimpl
def rankfold_model_done(model: Any, plan: Plan) -> None:
    """Leave the plan in the model's configuration, for `from_pretrained`."""
    if is_registered():
        # A model of transformers cannot exist before transformers is imported, so nothing is
        # imported here for models of anything else.
        from rankfold_transformers.records import record

        record(model, plan)


@hookimpl
def rankfold_model_expanded(model: Any, plan: Plan) -> None:
    """Take the plan out of the model's configuration."""
    if is_registered():
        from rankfold_transformers.records import erase

        erase(model, plan)
