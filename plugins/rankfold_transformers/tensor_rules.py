"""Tensor rules for layers of transformers' models; this module imports no framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from rankfold.adapters.tensor_rules import LayerTensor, TensorRule, numbered
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.ops import Chain, Linear, Op

_WEIGHT = "weight"
_CONV1D = frozenset(
    ("clvp", "clvp_decoder", "decision_transformer", "gpt2", "imagegpt", "openai-gpt")
)
"""The model types whose layers of these names are `Conv1D`; elsewhere they are `nn.Linear`."""
_NAMES = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})
EXPERTS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
"""Parameters of the experts' modules that are stacks."""
_PARALLEL = ("input_linear", "output_linear")
_MATRIX = 2
"""Axes of the weight of a linear layer."""
_STACK = 3
"""Axes of a stack of such weights, one for each expert."""
# Levels of a configuration that are looked at: its own, those of its parts (text, vision), and
# theirs.
_DEPTH = 3


class _Layout(Protocol):
    """Function from the arrays of a layer to its weight as (out, in)."""

    def __call__(self, weight: Array, bias: Array | None) -> Array: ...


def transposed(weight: Array, bias: Array | None) -> Array:
    """Return a weight that is known to be (in, out) as (out, in).

    Raises:
        RankfoldError: the bias does not fit.
    """
    if bias is not None and bias.shape != weight.shape[1:]:
        raise RankfoldError(
            f"a bias of {bias.shape} for a Conv1D weight of {weight.shape}, which is (in, out)"
        )
    return weight.T


def as_its_bias_says(weight: Array, bias: Array | None) -> Array:
    """Return a weight that is (in, out) or (out, in) as (out, in), by the length of the bias.

    Raises:
        RankfoldError: that does not tell.
    """
    rows, columns = weight.shape
    why = ""
    if bias is None:
        why = "there is no bias to tell"
    elif rows == columns:
        why = f"its shape {weight.shape} does not tell"
    elif bias.shape not in ((rows,), (columns,)):
        why = f"its bias of {bias.shape} does not fit {weight.shape}"
    if why:
        raise RankfoldError(
            f"by its name a Conv1D (in, out) or a Linear (out, in), and {why}; put the model's "
            "config.json with its model_type beside the file"
        )
    assert bias is not None
    # A bias has one number an output, so its length says which axis the outputs are.
    return weight if bias.shape == (rows,) else weight.T


@dataclass(frozen=True)
class Projections:
    """GPT-2's projections by their names: `Conv1D`, whose weight is (in, out), or `Linear`.

    Attributes:
        name: of the rule.
        told: whether it is for checkpoints with a model_type in config.json, or for those without.
        layout: of their weights.
    """

    name: str
    told: bool
    layout: _Layout
    stores_interpolations: ClassVar[bool] = True

    def recognise(
        self, name: str, shape: tuple[int, ...], settings: Mapping[str, Any]
    ) -> LayerTensor | None:
        """Recognise them, but where a model_type says that they are ordinary `Linear`s."""
        path, _, last = name.rpartition(".")
        if last != _WEIGHT or len(shape) != _MATRIX or path.rpartition(".")[2] not in _NAMES:
            return None
        types = set(_model_types(settings, _DEPTH))
        # Two rules share the names: one for checkpoints that say what they are, which needs no
        # bias, and one for those that do not. Where the types name other models only, neither
        # applies.
        if bool(types) != self.told or (types and not types & _CONV1D):
            return None
        return LayerTensor(path, f"{path}.bias")

    def op(self, name: str, weight: Array, bias: Array | None) -> Op:
        """Return the layer, output channels first."""
        return Linear(self.layout(weight, bias), bias)

    def stages(self, name: str, chain: Chain) -> Mapping[str, Array]:
        """Return the tensors of an `nn.Sequential` of `nn.Linear`s."""
        return numbered(name.rpartition(".")[0], chain)


def _model_types(settings: Any, depth: int) -> Iterator[str]:
    """Yield the model_type of a configuration and of those of its parts."""
    if not isinstance(settings, Mapping) or not depth:
        return
    if isinstance(settings.get("model_type"), str):
        yield settings["model_type"]
    for part in settings.values():
        yield from _model_types(part, depth - 1)


@dataclass(frozen=True)
class Experts:
    """Stacks of the matrices of all experts, (experts, rows, columns), one tensor each.

    Routers are left alone: they are small, and no `nn.Linear` in the models.

    Attributes:
        name: of the rule.
    """

    name: str = "experts"

    def recognise(
        self, name: str, shape: tuple[int, ...], settings: Mapping[str, Any]
    ) -> LayerTensor | None:
        """Recognise stacks; rows may be output or input, as a product of factors is the same."""
        path, _, last = name.rpartition(".")
        parts = path.split(".")
        layer = parts[-1]
        if len(shape) == _MATRIX and last == _WEIGHT and ("router" in parts or layer == "gate"):
            # "gate" is also the name of ordinary layers. A router has one row an expert; without a
            # configuration a matrix with fewer rows than columns is taken for one, which at worst
            # leaves it whole.
            experts = set(_experts(settings, _DEPTH))
            if shape[0] in experts or (not settings and shape[0] < shape[1]):
                return LayerTensor(path, refusal="by its name the router of a mixture of experts")
        stack = last in EXPERTS or (last == _WEIGHT and layer in _PARALLEL)
        return LayerTensor(name) if stack and len(shape) == _STACK else None

    def op(self, name: str, weight: Array, bias: Array | None) -> Op:
        """Return the stack as a layer with one group an expert."""
        return Linear(weight.reshape(-1, weight.shape[-1]), groups=len(weight))

    def stages(self, name: str, chain: Chain) -> Mapping[str, Array]:
        """Return the originals of a parametrization, in the layout of the stack."""
        path, dot, last = name.rpartition(".")
        return {
            f"{path}{dot}parametrizations.{last}.original{index}": stage.weight.reshape(
                stage.groups, -1, stage.weight.shape[1]
            )
            for index, stage in enumerate(chain)
        }


def _experts(settings: Any, depth: int) -> Iterator[int]:
    """Yield the numbers of experts that a configuration and its parts tell."""
    if not isinstance(settings, Mapping) or not depth:
        return
    for key, value in settings.items():
        # "num_experts", "num_local_experts", "n_routed_experts": each model has a word of its own.
        # Not "num_experts_per_tok", by which a gate of two rows would be taken for a router.
        counts = isinstance(value, int) and not isinstance(value, bool)
        if counts and "expert" in key and not key.endswith(("_per_tok", "_per_token")):
            yield value
        yield from _experts(value, depth - 1)


_READ = {
    **dict.fromkeys(("t5", "mt5", "umt5", "switch_transformers", "longt5", "udop"), ("wo",)),
    "nllb-moe": ("fc2",),
    "bloom": ("dense", "dense_4h_to_h"),
    **dict.fromkeys(("mamba", "falcon_mamba"), ("x_proj", "dt_proj", "out_proj")),
    "mamba2": ("out_proj",),
    "bamba": ("out_proj",),
    "jamba": ("x_proj", "dt_proj", "out_proj"),
    **dict.fromkeys(
        ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "blip", "vilt"),
        ("patch_embedding", "projection"),
    ),
}
"""By model type, the last part of the paths of layers whose weight their owner reads itself."""


@dataclass(frozen=True)
class ReadByOwner:
    """Layers of which a model reads the weight itself: no other layer can take their place.

    Attributes:
        name: of the rule.
    """

    name: str = "read-by-owner"

    def recognise(
        self, name: str, shape: tuple[int, ...], settings: Mapping[str, Any]
    ) -> LayerTensor | None:
        """Recognise them by the model_type of config.json."""
        path, _, last = name.rpartition(".")
        layer = path.rpartition(".")[2]
        if last != _WEIGHT or len(shape) < _MATRIX:
            return None
        if any(layer in _READ.get(kind, ()) for kind in _model_types(settings, _DEPTH)):
            return LayerTensor(path, refusal="the model reads its weight itself")
        return None

    def op(self, name: str, weight: Array, bias: Array | None) -> Op:
        """Never asked: the layers are left alone."""
        raise RankfoldError(f"{name!r} is left alone")

    def stages(self, name: str, chain: Chain) -> Mapping[str, Array]:
        """Never asked: the layers are left alone."""
        raise RankfoldError(f"{name!r} is left alone")


# The last is asked first, so that a layer which must stay whole is seen before its name is.
TENSOR_RULES: tuple[TensorRule, ...] = (
    Projections("conv1d", True, transposed),
    Projections("conv1d-or-linear", False, as_its_bias_says),
    Experts(),
    ReadByOwner(),
)
