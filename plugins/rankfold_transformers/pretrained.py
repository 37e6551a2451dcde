"""transformers' extension point: a quantization method "rankfold" for `from_pretrained`.

The compressed structure is built from the plans of config.json before any weight is loaded, on the
meta device; then transformers loads the files as it does for any model. What comes of it is an
ordinary model, and no quantized one: it can be cast, trained and saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer

from rankfold.errors import RankfoldError
from rankfold.plan import Plan
from rankfold.registry import registry
from rankfold.stored.headers import read_header
from rankfold_transformers.records import METHOD, RankfoldConfig, recorded
from rankfold_transformers.structure import Exchange, restructured

_THERE = "_is_hf_initialized"
"""By this attribute of a tensor transformers knows that it has its values."""

register_quantization_config(METHOD)(RankfoldConfig)


@register_quantizer(METHOD)
class RankfoldQuantizer(HfQuantizer):
    """Gives a model the structure that its weights were saved with."""

    def is_serializable(self, safe_serialization: Any = None) -> bool:
        """Always: the state is that of the modules."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Always: the chains are layers."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Always: no adapter is needed."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Always: the chains are layers."""
        return True

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> Any:
        """Puts the chains in the places of the layers.

        Raises:
            RankfoldError: plans and model, or plans and files, do not fit.
        """
        if not self.pre_quantized:
            raise RankfoldError(
                "from_pretrained compresses nothing: load the model, then call rankfold.compress"
            )
        assert isinstance(self.quantization_config, RankfoldConfig)
        plans = [_of(model, plan) for plan in self.quantization_config.read()]
        if plans:
            _check_files(plans[0], checkpoint_files or ())
        exchanges = [exchange for plan in plans for exchange in restructured(model, plan)]
        vars(model)["initialize_weights"] = partial(_initialize, model, exchanges)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Leaves nothing at the model that says it is quantized, but its configuration."""
        for name in ("hf_quantizer", "quantization_method", "initialize_weights"):
            vars(model).pop(name, None)
        model.is_quantized = False
        for module in model.modules():
            vars(getattr(module, "config", module)).pop("_is_quantized", None)
        assert recorded(model.config)
        return model


def _of(model: Any, plan: Plan) -> Plan:
    """The plan with the paths of this model, which may be the base of the one that was saved.

    Or the reverse: `from_pretrained` of a model with a head takes the files of one without.
    """
    start = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    if not start:
        return plan
    layers = plan.replaced
    inside = any(layer.path.startswith(start) for layer in layers)
    if hasattr(model, model.base_model_prefix):
        known = registry().adapter(model).layers(model)
        if inside or any(layer.path in known for layer in layers):
            return plan
        layers = tuple(msgspec.structs.replace(layer, path=start + layer.path) for layer in layers)
    elif inside:
        layers = tuple(
            msgspec.structs.replace(layer, path=layer.path.removeprefix(start))
            for layer in layers
            if layer.path.startswith(start)
        )
    return msgspec.structs.replace(plan, layers=layers)


def _check_files(plan: Plan, files: Sequence[str]) -> None:
    """Sees to it that the files hold no weights of the layers that were replaced.

    They do where a model was made anew from the configuration of a compressed one, and saved.
    """
    names = {
        name
        for file in files
        if file.endswith(".safetensors")
        for name in read_header(Path(file)).entries
    }
    for layer in plan.replaced:
        if f"{layer.path}.weight" in names:
            raise RankfoldError(
                f"config.json tells of a compressed model, but its files hold the whole weight of "
                f"{layer.path!r}: they are of another model; take quantization_config out of it"
            )


def _initialize(model: Any, exchanges: Sequence[Exchange]) -> None:
    """Gives values to what the files lack, as transformers does after loading.

    A model's own code for that reaches into its layers (`self.fc.weight`), so it finds them as they
    were, with weights that are marked as being there.

    Raises:
        RankfoldError: the files lack weights of a chain.
    """
    for exchange in exchanges:
        for name, tensor in exchange.chain.named_parameters():
            if not getattr(tensor, _THERE, False):
                raise RankfoldError(
                    f"the files lack {exchange.path}.{name}, which the plan in config.json calls "
                    "for: save the compressed model anew"
                )
        for tensor in exchange.layer.parameters():
            setattr(tensor, _THERE, True)
    for exchange in reversed(exchanges):
        exchange.owner._modules[exchange.name] = exchange.layer
    try:
        type(model).initialize_weights(model)
    finally:
        for exchange in exchanges:
            exchange.owner._modules[exchange.name] = exchange.chain
