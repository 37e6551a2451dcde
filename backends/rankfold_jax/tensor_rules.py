"""Tensor rules of Flax: how its layers lie in a checkpoint; this module imports no framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rankfold.adapters.tensor_rules import LayerTensor
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.ops import Chain, Conv, Embedding, Linear, Op
from rankfold.ops.interpolation import stored_weight

_CONVOLUTIONS = (3, 4, 5)
"""Axes of the kernel of a convolution over one to three spatial axes."""


@dataclass(frozen=True)
class FlaxTensors:
    """`Dense` and `Conv` by ".kernel", (in, out) and (*kernel, in, out); `Embed` by ".embedding".

    Attributes:
        name: "nnx" or "linen".
        root: what the names begin with.
        stage: between the name of a layer and the place of a stage.
    """

    name: str
    root: str
    stage: str
    stores_interpolations: ClassVar[bool] = True

    def recognise(
        self, name: str, shape: tuple[int, ...], settings: Mapping[str, Any]
    ) -> LayerTensor | None:
        """Leaves stacks of layers alone, which look like convolutions."""
        path, _, last = name.removeprefix(self.root).rpartition(".")
        if not name.startswith(self.root) or last not in ("kernel", "embedding"):
            return None
        if last == "embedding":
            return LayerTensor(path) if len(shape) == 2 else None
        if len(shape) not in (2, *_CONVOLUTIONS):
            return None
        layer, kernel = path.rpartition(".")[2].lower(), shape[:-2]
        told = "conv" in layer or (len(kernel) > 1 and len(set(kernel)) == 1)
        refusal = ""
        if kernel and not told:
            refusal = "by its shape a convolution, a stack of layers or several heads"
        elif kernel and "transpose" in layer:
            refusal = "by its name a transposed convolution"
        elif kernel and shape[-2] == 1:
            refusal = "one input channel: depthwise, or as good as"
        if refusal:
            return LayerTensor(path, refusal=refusal)
        return LayerTensor(path, name.removesuffix(last) + "bias")

    def op(self, name: str, weight: Array, bias: Array | None) -> Op:
        """Output channels first."""
        if name.endswith(".embedding"):
            return Embedding(weight)
        if bias is not None and bias.shape != weight.shape[-1:]:
            raise RankfoldError(
                f"a bias of {bias.shape} for a kernel of {weight.shape}: it has other axes than "
                "those of one layer"
            )
        if weight.ndim == 2:
            return Linear(np.ascontiguousarray(weight.T), bias)
        return Conv(np.ascontiguousarray(np.moveaxis(weight, (-1, -2), (0, 1))), bias)

    def stages(self, name: str, chain: Chain) -> Mapping[str, Array]:
        """Kernels, with the channels last."""
        path = name.rpartition(".")[0]
        tensors: dict[str, Array] = {}
        for index, stage in enumerate(chain):
            prefix = f"{path}.{self.stage}{index}"
            if isinstance(stage, Embedding):
                tensors[f"{prefix}.embedding"] = stage.weight
                continue
            tensors[f"{prefix}.kernel"] = np.moveaxis(stored_weight(stage), (0, 1), (-1, -2))
            if stage.bias is not None:
                tensors[f"{prefix}.bias"] = stage.bias
        return tensors


FLAX_TENSORS = (FlaxTensors("nnx", "", "layers."), FlaxTensors("linen", "params.", "lr"))
