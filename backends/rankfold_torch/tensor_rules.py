"""How PyTorch's layers lie in a checkpoint; this module imports no framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankfold.adapters.tensor_rules import LayerTensor, numbered
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, Linear, Op

_WEIGHT = "weight"
_TABLES = ("wte", "wpe", "shared", "relative_attention_bias")
_TRANSPOSED = ("transpose", "deconv", "upsampl")
_CONVOLUTIONS = (3, 4, 5)


class TorchTensors:
    """`Linear` and `Conv` by ".weight": (out, in) and (out, in, *kernel)."""

    name = "torch"

    def recognise(
        self, name: str, shape: tuple[int, ...], settings: Mapping[str, Any]
    ) -> LayerTensor | None:
        """Leaves alone what its name or shape makes out to be something else."""
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
        elif shape[1] == 1:
            return LayerTensor(path, refusal="one input channel: depthwise, or as good as")
        return LayerTensor(path, f"{path}.bias" if path else "bias")

    def op(self, name: str, weight: Array, bias: Array | None) -> Op:
        """The arrays as they are."""
        if bias is not None and bias.shape != weight.shape[:1]:
            raise RankfoldError(
                f"a bias of {bias.shape} for a weight of {weight.shape}: its layout is another"
            )
        return Linear(weight, bias) if weight.ndim == 2 else Conv(weight, bias)

    def stages(self, name: str, chain: Chain) -> Mapping[str, Array]:
        """Those of an `nn.Sequential`."""
        return numbered(name.rpartition(".")[0], chain)


TORCH_TENSORS = TorchTensors()
