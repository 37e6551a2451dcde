"""Names of the stages of a chain in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from rankfold.linalg import Array
from rankfold.ops import Chain, Op, pivots_of
from rankfold.ops.interpolation import gather_order, stored_weight

ORDER = "order"
"""The last part of the name of an interpolative stage's order of channels, beside its weight."""


def numbered(path: str, chain: Chain) -> dict[str, Array]:
    """Weights (out, in, *kernel) and biases of stages that are numbered below a path: 0, 1 ...

    Of interpolative stages the weight is what is stored of it, with the order of the channels.

    Args:
        path: of the layer; "" for a model that is one.
        chain: in its place.
    """
    tensors: dict[str, Array] = {}
    for index, stage in enumerate(chain):
        prefix = f"{path}.{index}" if path else str(index)
        tensors[f"{prefix}.weight"] = stored_weight(stage)
        if pivots_of(stage) is not None:
            tensors[f"{prefix}.{ORDER}"] = np.array(gather_order(stage), np.int64)
        if stage.bias is not None:
            tensors[f"{prefix}.bias"] = stage.bias
    return tensors


@dataclass(frozen=True)
class LayerTensor:
    """The layer that a tensor of a checkpoint is the weight of.

    Attributes:
        path: of the layer.
        bias: the name that the layer's bias has, if it has one.
        refusal: why the layer is left alone; "" where it is not.
    """

    path: str
    bias: str = ""
    refusal: str = ""


class TensorRule(Protocol):
    """Knows the weights of layers in a checkpoint by their names and shapes.

    A rule declared later is asked first, so that plugins come before the frameworks' own.
    """

    @property
    def name(self) -> str:
        """The word for it."""

    def recognise(
        self, name: str, shape: tuple[int, ...], settings: Mapping[str, Any]
    ) -> LayerTensor | None:
        """Return the layer that a tensor is the weight of; None: not known.

        Args:
            name: of the tensor.
            shape: of the tensor.
            settings: config.json of the checkpoint; empty without one.
        """

    def op(self, name: str, weight: Array, bias: Array | None) -> Op:
        """Return the layer of a recognised tensor, without stride, padding and dilation.

        Raises:
            RankfoldError: weight and bias do not fit each other.
        """

    def stages(self, name: str, chain: Chain) -> Mapping[str, Array]:
        """Return the tensors that take the place of weight and bias, as a loaded model has them."""


@runtime_checkable
class StoresInterpolations(Protocol):
    """A tensor rule whose `stages` knows interpolative stages (`rankfold.ops.interpolation`).

    Layers of other rules are given none.

    Attributes:
        stores_interpolations: whether it does.
    """

    stores_interpolations: ClassVar[bool]
