"""transformers' extension point: a quantization method "rankfold" for `from_pretrained`.

The compressed structure is built from the plans of config.json before any weight is loaded, on the
meta device; then transformers loads the files as it does for any model. What comes of it is an
ordinary model, and no quantized one: it can be cast, trained and saved.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
        names = _names(checkpoint_files or ())
        exchanges: list[Exchange] = []
        for plan in self.quantization_config.read():
            _check_compressed(plan, names)
            exchanges += restructured(model, _fitted(model, plan, names))
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


def _fitted(model: Any, plan: Plan, names: Collection[str]) -> Plan:
    """The plan with the paths of this model, which may be the base of the one that was saved.

    Or one with another head: what the files have nothing of is left to transformers, which says so.

    Args:
        model: to be loaded.
        plan: of the one that was saved.
        names: of the tensors in the files; none where that is not known.
    """
    start = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    if not start:
        return plan
    layers = plan.replaced
    if not hasattr(model, model.base_model_prefix):
        if any(layer.path.startswith(start) for layer in layers):  # and the rest is a head
            layers = tuple(
                msgspec.structs.replace(layer, path=layer.path.removeprefix(start))
                for layer in layers
                if layer.path.startswith(start)
            )
        return msgspec.structs.replace(plan, layers=layers)
    known = registry().adapter(model).layers(model)
    if not any(layer.path.startswith(start) or layer.path in known for layer in layers):
        layers = tuple(msgspec.structs.replace(layer, path=start + layer.path) for layer in layers)
    kept = (
        layer
        for layer in layers
        if layer.path.startswith(start)
        or (layer.path in known and (not names or _has(names, layer.path)))
    )
    return msgspec.structs.replace(plan, layers=tuple(kept))


def _has(names: Collection[str], path: str) -> bool:
    return any(name.startswith(f"{path}.") for name in names)


def _names(files: Sequence[str]) -> set[str]:
    """The names of the tensors in safetensors files."""
    return {
        name
        for file in files
        if file.endswith(".safetensors")
        for name in read_header(Path(file)).entries
    }


def _check_compressed(plan: Plan, names: Collection[str]) -> None:
    """Sees to it that the files hold no weights of the layers that were replaced.

    They do where a model was made anew from the configuration of a compressed one, and saved.
    """
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
