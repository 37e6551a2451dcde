"""Rule for tensors of a checkpoint laid out as PyTorch's layers; imports no framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rankfold.adapters.tensor_rules import LayerTensor, numbered
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, Linear, Op

_WEIGHT = "weight"
# Names of embedding tables in GPT-2 (wte, wpe) and T5 (shared, relative_attention_bias). A table
# has the shape of a `Linear` weight; nothing but its name tells them apart in a checkpoint.
_TABLES = ("wte", "wpe", "shared", "relative_attention_bias")
# Parts of the names of layers that upsample. A transposed convolution is stored (in, out/groups,
# *kernel): read as a `Conv`, its channels would be swapped, and of a square one nothing tells.
_TRANSPOSED = ("transpose", "deconv", "upsampl")
_CONVOLUTIONS = (3, 4, 5)
"""Axes of the weight of a convolution over one to three spatial axes."""


class TorchTensors:
    """Rule that reads "<path>.weight" as `Linear` (out, in) or `Conv` (out, in, *kernel)."""

    name = "torch"
    stores_interpolations: ClassVar[bool] = True

    def recognise(
        self, name: str, shape: tuple[int, ...], settings: Mapping[str, Any]
    ) -> LayerTensor | None:
        """Return the layer of a tensor, with a refusal where name or shape tell of another kind."""
        path, _, last = name.rpartition(".")
        if last != _WEIGHT or len(shape) not in (2, *_CONVOLUTIONS):
            return None
        layer = path.rpartition(".")[2].lower()
        if len(shape) == 2:
            if "emb" in layer or layer in _TABLES:
                return LayerTensor(path, refusal="by its name a table, which is left alone here")
        elif any(word in path.lower() for word in _TRANSPOSED):
            why = "by its name a transposed convolution, whose layout is not told by its shape"
            return LayerTensor(path, refusal=why)
        # The groups are not stored. in/groups == 1 is depthwise, or a convolution of one channel:
        # read with groups=1 the first would be a layer of one input channel, which it is not.
        elif shape[1] == 1:
            return LayerTensor(path, refusal="one input channel: depthwise, or as good as")
        return LayerTensor(path, f"{path}.bias" if path else "bias")

    def op(self, name: str, weight: Array, bias: Array | None) -> Op:
        """Return the op of a weight and a bias, whose arrays are taken as they are."""
        # The bias has `out` elements. Where it has another length, the weight is laid out
        # otherwise, as (in, out) in GPT-2's Conv1D.
        if bias is not None and bias.shape != weight.shape[:1]:
            raise RankfoldError(
                f"a bias of {bias.shape} for a weight of {weight.shape}: its layout is another"
            )
        return Linear(weight, bias) if weight.ndim == 2 else Conv(weight, bias)

    def stages(self, name: str, chain: Chain) -> Mapping[str, Array]:
        """Return the tensors of the stages under the names that an `nn.Sequential` gives them."""
        return numbered(name.rpartition(".")[0], chain)


TORCH_TENSORS = TorchTensors()
