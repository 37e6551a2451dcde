"""transformers' extension point: a quantization method "rankfold" for `from_pretrained`.

The compressed structure is built from the plans of config.json before any weight is loaded, on the
meta device; then transformers loads the files as it does for any model. What comes of it is an
ordinary model, and no quantized one: it can be cast, trained and saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers.configuration_utils import PretrainedConfig
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer

from rankfold.errors import RankfoldError
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.plugins.registry import registry
from rankfold.storage.model_folders import read_settings
from rankfold.storage.safetensors_header import read_header
from rankfold_transformers.config_entry import ATTRIBUTE, FILE, METHOD
from rankfold_transformers.config_guard import guard
from rankfold_transformers.records import RankfoldConfig, write
from rankfold_transformers.structure import Exchange, restructured

_ALIGNMENT = 64
"""Bytes to which PyTorch aligns memory on the CPU."""
_LOADED = "_is_hf_initialized"
"""By this attribute of a tensor transformers knows that it has its values."""

register_quantization_config(METHOD)(RankfoldConfig)
guard()


@register_quantizer(METHOD)
class RankfoldQuantizer(HfQuantizer):
    """Gives a model the structure that its weights were saved with."""

    def is_serializable(self, safe_serialization: Any = None) -> bool:
        """Return True: the state is that of the modules."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Always: the chains are layers."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Return True: no adapter is needed."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Always: the chains are layers."""
        return True

    def update_attn_implementation(self, config: Any) -> Any:
        """Take the entry out of a configuration by which it cannot be opened without rankfold."""
        # Called for another reason; it is where a method sees the configuration before the files
        # are looked for.
        vars(config).pop(FILE, None)
        return config

    update_tp_plan = update_attn_implementation
    """The same in versions of transformers before 5.20."""

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> Any:
        """Have the tensors of chains loaded under their names, and all others as ever."""
        # Not before: older versions, which do not call it, have no such renamings.
        from rankfold_transformers.renaming import chain_names

        known = self._state if self._by_model else frozenset[str]()
        return chain_names(weight_conversions, self._names, known)

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> Any:
        """Put the chains in the places of the layers.

        Raises:
            RankfoldError: plans and model, or plans and files, do not fit.
        """
        # transformers would call it to quantize a model that was saved without, by a config from
        # the caller.
        if not self.pre_quantized:
            raise RankfoldError(
                "from_pretrained compresses nothing: load the model, then call rankfold.compress"
            )
        assert isinstance(self.quantization_config, RankfoldConfig)
        entry = _entry(checkpoint_files or (), self.quantization_config)
        plans = entry.read()
        tensors = _tensors(checkpoint_files or ())
        _check_compressed(plans, tensors)
        planned = {layer.path for plan in plans for layer in plan.replaced}
        self._by_model = entry.names == "model"
        self._names: dict[str, str] = {}
        if not self._by_model:
            from rankfold_transformers.file_names import chains_in

            layers = [layer.path for plan in plans for layer in plan.replaced]
            paths, self._names = chains_in(model, layers, tensors)
            plans = tuple(
                _renamed(plan, [(x, paths[x.path]) for x in plan.replaced if x.path in paths])
                for plan in plans
            )
        self._plans: list[Plan] = []
        self._exchanges: list[Exchange] = []
        for plan in plans:  # each of the model that the one before it gives
            self._plans.append(_fitted(model, plan))
            self._exchanges += restructured(model, self._plans[-1])
        # Also by the names that they have in a base model, or in one with a head.
        names, base = model.state_dict().keys(), _base(model)
        self._state = frozenset((*names, *(f"{base}{name}" for name in names)))
        self._state |= {name.removeprefix(base) for name in names}
        self._check_planned(model, planned, tensors)
        # On this one model, past `nn.Module.__setattr__`: the method of its class serves all
        # others, and this one goes again when the model is loaded.
        vars(model)["initialize_weights"] = partial(self._initialize, model)
        return model

    def _check_planned(self, model: Any, planned: set[str], tensors: Sequence[str]) -> None:
        """Check that no layer is whole in the model, with its plans, and a chain in the files.

        Raises:
            RankfoldError: one is: transformers would fill it at random.
        """
        from rankfold_transformers.file_names import chains_of, names_of

        chains = {path: weight for path, weight in chains_of(tensors) if path not in planned}
        if not chains:
            return
        names = {} if self._by_model else names_of(model, (*chains.values(), *tensors))
        for path, weight in chains.items():
            if names.get(weight, weight) in self._state:
                raise RankfoldError(
                    f"the files hold a chain in the place of layer {path!r}, of which the plans in "
                    "config.json say nothing: it is not the config.json that was written with "
                    "them; save the compressed model anew"
                )

    def _initialize(self, model: Any) -> None:
        """Give values to what the files lack, as transformers does after loading.

        A model's own code for that reaches into its layers (`self.fc.weight`), so it finds them as
        they were, with weights that are marked as being there. A head of which the files have
        nothing, since they are of a model without it, becomes a layer again and gets values.

        Raises:
            RankfoldError: the files lack weights of a chain.
        """
        # Only a head may be missing as a whole. A chain of which some parameters are there, or one
        # in the body of the model, has lost weights, and values at random would hide that.
        lacking = [e for e in self._exchanges if _is_head(model, e) and not any(_loaded(e))]
        exchanges = [e for e in self._exchanges if not any(_is_within(e, head) for head in lacking)]
        self._plans = [_without(plan, lacking) for plan in self._plans]
        for exchange in lacking:
            device = next(exchange.chain.parameters()).device
            exchange.owner._modules[exchange.name] = exchange.layer.to_empty(device=device)
        for exchange in exchanges:
            for (name, _), loaded in zip(
                exchange.chain.named_parameters(), _loaded(exchange), strict=True
            ):
                if not loaded:
                    raise RankfoldError(
                        f"the files lack {exchange.path}.{name}, which the plan in config.json "
                        "calls for: save the compressed model anew"
                    )
            for tensor in exchange.layer.parameters():
                setattr(tensor, _LOADED, True)
        # The latest first: a chain of a later plan stands within a chain of an earlier one, whose
        # layer is to be back in the end. Forwards again below.
        for exchange in reversed(exchanges):
            exchange.owner._modules[exchange.name] = exchange.layer
        try:
            type(model).initialize_weights(model)
        finally:
            for exchange in exchanges:
                exchange.owner._modules[exchange.name] = exchange.chain

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Leave nothing at the model that says it is quantized, but the plans that it follows."""
        for name in ("hf_quantizer", "quantization_method", "initialize_weights"):
            vars(model).pop(name, None)
        model.is_quantized = False
        # Parts of a model that are models have configurations of their own.
        for module in model.modules():
            config = getattr(module, "config", None)
            if isinstance(config, PretrainedConfig):
                vars(config).pop("_is_quantized", None)
        write(model, self._plans)
        _align(model)
        return model


def _align(model: Any) -> None:
    """Give tensors that lie in a mapped file at odd addresses memory of their own.

    Kernels choose their way by alignment, and files align tensors to 8 bytes: the same weights
    would give other last bits whenever they were saved anew.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone(memory_format=torch.preserve_format)


def _fitted(model: Any, plan: Plan) -> Plan:
    """Return the plan with the paths of this model, which may be the base of the one saved.

    Or the reverse, or one with another head: layers of heads that it does not have are left out.
    """
    start = _base(model)
    layers = plan.replaced
    if not start:
        return plan
    inside = any(layer.path.startswith(start) for layer in layers)
    # A model with a head holds its base under that name; the base itself does not. What was saved
    # may be either, as transformers loads each into the other.
    if hasattr(model, model.base_model_prefix):
        known = registry().adapter(model).layers(model)
        if not inside and not any(layer.path in known for layer in layers):
            return _renamed(plan, [(layer, start + layer.path) for layer in layers])
        kept = [layer for layer in layers if layer.path.startswith(start) or layer.path in known]
        return _renamed(plan, [(layer, layer.path) for layer in kept])
    if not inside:
        return plan
    kept = [layer for layer in layers if layer.path.startswith(start)]
    return _renamed(plan, [(layer, layer.path.removeprefix(start)) for layer in kept])


def _renamed(plan: Plan, paths: Iterable[tuple[LayerPlan, str]]) -> Plan:
    layers = (msgspec.structs.replace(layer, path=path) for layer, path in paths)
    return msgspec.structs.replace(plan, layers=tuple(layers))


def _base(model: Any) -> str:
    """Return the start of all paths but those of heads: the base model's name and a dot."""
    return f"{model.base_model_prefix}." if model.base_model_prefix else ""


def _is_head(model: Any, exchange: Exchange) -> bool:
    return hasattr(model, model.base_model_prefix) and not exchange.path.startswith(_base(model))


def _is_within(exchange: Exchange, other: Exchange) -> bool:
    return f"{exchange.path}.".startswith(f"{other.path}.")


def _without(plan: Plan, heads: Sequence[Exchange]) -> Plan:
    """Return a plan without the layers of heads that are no longer compressed."""
    kept = tuple(
        layer
        for layer in plan.layers
        if not any(f"{layer.path}.".startswith(f"{head.path}.") for head in heads)
    )
    return msgspec.structs.replace(plan, layers=kept)


def _loaded(exchange: Exchange) -> list[bool]:
    """List for each parameter of a chain whether it was in the files."""
    # What goes to disk stays on the meta device; what the files lack has been given memory by now.
    return [getattr(t, _LOADED, False) or t.is_meta for t in exchange.chain.parameters()]


def _entry(files: Sequence[str], passed: RankfoldConfig) -> RankfoldConfig:
    """Return the entry of the config.json beside files; without one, that of the configuration.

    They differ where the caller passes the configuration of a model that was opened from the files:
    it has the names of that model, and maybe plans of later compressions.
    """
    entry = read_settings(Path(files[0]).parent).get(ATTRIBUTE) if files else None
    if isinstance(entry, Mapping) and entry.get("quant_method") == METHOD:
        return RankfoldConfig(**entry)
    return passed


def _tensors(files: Sequence[str]) -> list[str]:
    """List the names of the tensors in files."""
    return [
        name
        for file in files
        if file.endswith(".safetensors")
        for name in read_header(Path(file)).entries
    ]


def _check_compressed(plans: Sequence[Plan], tensors: Sequence[str]) -> None:
    """Check that the files hold no weights of the layers that were replaced.

    They do where a model was made anew from the configuration of a compressed one, and saved.
    """
    names = set(tensors)
    for plan in plans:
        for layer in plan.replaced:
            # A chain's tensors are called "path.0.weight" and so on, so the layer's own name says
            # it is whole.
            if f"{layer.path}.weight" in names:
                raise RankfoldError(
                    "config.json tells of a compressed model, but its files hold the whole weight "
                    f"of {layer.path!r}: they are of another model; take quantization_config out "
                    "of it"
                )
