"""The plans that stand in a model's configuration: what `from_pretrained` rebuilds it by."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from transformers.utils.quantization_config import QuantizationConfigMixin

from rankfold.errors import RankfoldError
from rankfold.plan.plan import Plan, validate
from rankfold.plugins.registry import registry
from rankfold_transformers.config_entry import ATTRIBUTE, METHOD, VERSION, Names, written


class RankfoldConfig(QuantizationConfigMixin):
    """Entry of config.json on a compressed model, under `quantization_config`.

    Args:
        plans: of the compressions that made the model, in order, each of the model that the one
            before it gave; the layers that were replaced.
        quant_method: always "rankfold".
        version: of this format.
        names: whose names the tensors of the files have, and the layers in the plans: "model" for
            those of the model's state, "file" for those of transformers' files of such a model.

    Raises:
        RankfoldError: another version, or not plans.
    """

    def __init__(
        self,
        plans: Sequence[Mapping[str, Any]] = (),
        quant_method: str = METHOD,
        version: int = VERSION,
        names: Names = "file",
    ) -> None:
        if version != VERSION:
            raise RankfoldError(
                f"config.json is of version {version} of rankfold's format; this rankfold reads "
                f"version {VERSION}"
            )
        self.quant_method = METHOD  # type: ignore[assignment]  # the type lists transformers' own
        self.version = version
        self.names = names
        # Kept as plain data, as the configuration is written as JSON; read once now, so that a
        # broken one is told when the file is opened.
        self.plans = list(plans)
        self.read()

    def read(self) -> tuple[Plan, ...]:
        """Return the plans, checked.

        Raises:
            RankfoldError: they are none.
        """
        try:
            plans = tuple(msgspec.convert(plan, Plan) for plan in self.plans)
        except msgspec.ValidationError as error:
            raise RankfoldError(f"{ATTRIBUTE} of config.json holds no plan: {error}") from None
        for plan in plans:
            validate(plan)
        return plans

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry: transformers asks a configuration that is passed on as a dictionary."""
        return vars(self).get(name, default)


def record(model: Any, plan: Plan) -> None:
    """Add a plan to the configuration of the models of transformers that a model is or holds.

    Plans that stand there and are not of this model (of a fresh one that was made from the
    configuration of a compressed one) go.
    """
    for path, part in _models(model):
        relative = _relative(plan, path)
        layers = registry().adapter(part).layers(part)
        replaced = {layer.path for layer in relative.replaced}
        # An earlier plan of this model replaced layers that are no longer there under their paths.
        # If one of them is a layer of the model, whole, the plan came along from another model.
        kept = [
            earlier
            for earlier in recorded(part.config)
            if not any(layer.path in layers or layer.path in replaced for layer in earlier.replaced)
        ]
        write(part, [*kept, relative] if replaced else kept)


def erase(model: Any, plan: Plan) -> None:
    """Take the last plan out of the configuration, where it is this one: its layers are back."""
    for path, part in _models(model):
        plans = recorded(part.config)
        if plans and _paths(plans[-1]) == _paths(_relative(plan, path)):
            write(part, plans[:-1])


def recorded(config: Any) -> list[Plan]:
    """List the plans that a configuration holds."""
    entry = getattr(config, ATTRIBUTE, None)
    # A configuration that was read from a file and not used to load a model has it as a dictionary.
    if isinstance(entry, Mapping) and entry.get("quant_method") == METHOD:
        entry = RankfoldConfig(**entry)
    return list(entry.read()) if isinstance(entry, RankfoldConfig) else []


def _models(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the outermost models of transformers in a model, with their paths."""
    from transformers.modeling_utils import PreTrainedModel  # whose import is what imports this

    if isinstance(model, PreTrainedModel):
        yield "", model
        return
    for name, child in model.named_children() if hasattr(model, "named_children") else ():
        for path, part in _models(child):
            yield f"{name}.{path}".rstrip("."), part


def _relative(plan: Plan, path: str) -> Plan:
    """Return the part of a plan for what stands at a path, with paths from there."""
    start = f"{path}." if path else ""
    layers = tuple(
        msgspec.structs.replace(layer, path=layer.path.removeprefix(start))
        for layer in plan.replaced
        if layer.path.startswith(start)
    )
    return msgspec.structs.replace(plan, layers=layers)


def _paths(plan: Plan) -> list[tuple[str, str | None, tuple[int, ...]]]:
    return [(layer.path, layer.method, layer.ranks) for layer in plan.replaced]


def write(model: Any, plans: Sequence[Plan]) -> None:
    """Give a model a configuration of its own with these plans; others may share the old one.

    Args:
        model: of transformers.
        plans: that it follows.
    """
    old = model.config
    if not plans and not hasattr(old, ATTRIBUTE):
        return
    new = copy.copy(old)
    if plans:
        entry = RankfoldConfig([written(plan) for plan in plans], names="model")
        setattr(new, ATTRIBUTE, entry)
    elif hasattr(new, ATTRIBUTE):
        delattr(new, ATTRIBUTE)
    # Its modules hold the same configuration object, and `save_pretrained` of a part reads that
    # part's.
    for module in model.modules():
        holders = [name for name, value in getattr(module, "__dict__", {}).items() if value is old]
        for name in holders:
            setattr(module, name, new)
        if "config" in holders:
            _keep_names(module, kept=bool(plans))
    _tag(model, tagged=bool(plans))


def _keep_names(model: Any, *, kept: bool) -> None:
    """Have a model saved with the names of its state, or as transformers saves it else.

    transformers gives tensors the names that older versions had for them, and splits stacks, by
    patterns that are not made for the names of chains.
    """
    if kept:
        model._weight_conversions = []
    else:
        vars(model).pop("_weight_conversions", None)


def _tag(model: Any, *, tagged: bool) -> None:
    """Have the model card that is pushed to the Hub name rankfold, or not any more."""
    others = [tag for tag in model.model_tags or () if tag != METHOD]
    tags = [*others, METHOD] if tagged else others
    model.model_tags = tags or None
