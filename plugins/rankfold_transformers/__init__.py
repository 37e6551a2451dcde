"""Layer rules for Hugging Face transformers: a plugin that uses the public plugin API alone."""

from collections.abc import Iterable

from rankfold.contracts import TensorRule
from rankfold.hookspecs import LayerRule, hookimpl
from rankfold_transformers.stored import TENSOR_RULES

RANKFOLD_API = (1, 0)


@hookimpl
def rankfold_layer_rules() -> Iterable[LayerRule | TensorRule]:
    """Teaches the PyTorch adapter GPT-2's `Conv1D`, in models and in checkpoints."""
    return (
        LayerRule(
            adapter="torch",
            layer="transformers.pytorch_utils:Conv1D",
            read="rankfold_transformers.conv1d:read",
        ),
        *TENSOR_RULES,
    )
