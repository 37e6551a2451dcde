"""Second moments of each layer's inputs and of the gradients at its outputs.

The second moment of a layer's input says which directions its weight is used in; that of the
gradient of the loss at its output says which errors of its output matter. Together they measure an
error ΔW of the weight in units of the loss, tr(G ΔW C ΔWᵀ) per position (Martens and Grosse, arXiv
1503.05671), a unit in which errors of different layers compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.linalg import Array, read_only, selected
from rankfold.ops import Conv, ConvTranspose, Embedding, Op

PATCH_LIMIT = 4608
"""The largest order of a moment of whole patches: 512 channels of a 3×3 kernel."""
REGRESSOR_LIMIT = 2048
"""The largest order of sums over what a basis makes of wider patches: a quarter of the products
that the largest moment of whole patches takes, for each of the layers of a refit."""
FEATURE_LIMIT = 16384
"""The largest order of a moment of the features of a `Linear`, and of the gradients."""
FEWEST = 16
"""Predictions below which moments do more harm than good: most classes are not seen."""


@dataclass(frozen=True, eq=False, repr=False)
class LayerMoments:
    """Second moments and mean of one layer, as arrays of NumPy or of the library of the model.

    Attributes:
        inputs: E[x xᵀ] of the layer's input at one position. (groups, d, d) with
            d = in/groups · positions of the kernel, channels first, as a row of the weight is laid
            out ("patches"); (groups, d), the diagonal alone ("diagonal"). For an `Embedding`
            (1, rows), how often each row is looked up, as a share. Of wider patches a
            `SeparableMoment` of the covariance E[x xᵀ] − E[x] E[x]ᵀ ("separable").
        mean: E[x], (groups, d); of an `Embedding` as `inputs`.
        grads: E[g gᵀ] of the gradient of the summed loss at the layer's output at one position,
            (groups, out/groups, out/groups), or the diagonal alone, (groups, out/groups); None for
            the identity.
        samples: the number of examples seen.
        positions_per_example: at how many positions of one example the layer is used.
    """

    inputs: Array | SeparableMoment
    mean: Array
    grads: Array | None
    samples: int
    positions_per_example: float

    def __post_init__(self) -> None:
        # policies and decompositions of plugins read the arrays that the user has gathered
        for name in ("inputs", "mean", "grads"):
            array = getattr(self, name)
            if array is not None and not isinstance(array, SeparableMoment):
                object.__setattr__(self, name, read_only(array))

    def __repr__(self) -> str:
        inputs, grads = self.inputs, self.grads
        form = "separable" if isinstance(inputs, SeparableMoment) else tuple(inputs.shape)
        gradients = "no grads" if grads is None else f"grads {tuple(grads.shape)}"
        return f"LayerMoments(inputs {form}, {gradients}, of {self.samples} examples)"

    def of_groups(self, groups: Sequence[int]) -> LayerMoments:
        """Select the moments of some of the groups."""
        inputs, mean, grads = self.inputs, selected(self.mean, groups), self.grads
        return LayerMoments(
            inputs.of_groups(groups)
            if isinstance(inputs, SeparableMoment)
            else selected(inputs, groups),
            mean,
            None if grads is None else selected(grads, groups),
            self.samples,
            self.positions_per_example,
        )


class StoredMoments(Mapping[str, LayerMoments]):
    """Moments of layers by path, which are read anew each time and not kept.

    Args:
        readers: by path, read the moments of one layer.
    """

    def __init__(self, readers: Mapping[str, Callable[[], LayerMoments]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, path: str) -> LayerMoments:
        return self._readers[path]()

    def __contains__(self, path: object) -> bool:
        return path in self._readers  # that of `Mapping` would read them

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __reduce__(self) -> tuple[Any, ...]:
        # Where they are read from is of this process.
        return dict, (dict(self),)


@dataclass(frozen=True, eq=False)
class RegressionSums:
    """Sums over positions of the original layer's output y and the compressed one's input x.

    They are of all groups of a layer, or of those that a `LayerVisitor` names.

    Attributes:
        xx: Σ x xᵀ, (groups, d, d), patches as in `LayerMoments`, or what the basis of the visitor
            makes of them.
        yx: Σ y xᵀ, (groups, out/groups, d); y includes the bias.
        x: Σ x, (groups, d).
        y: Σ y, (groups, out/groups).
        square: Σ ‖y‖², (groups,).
        count: the number of positions.
        yy: Σ y yᵀ, (groups, out/groups, out/groups), of held-out positions; None of fitted ones. It
            tells how certain a comparison on them is.
    """

    xx: Array
    yx: Array
    x: Array
    y: Array
    square: Array
    count: int
    yy: Array | None = None


def input_form(op: Op) -> str:
    """Return the form in which the moments of a layer's inputs are gathered."""
    if isinstance(op, Embedding):
        return "diagonal"
    if isinstance(op, (Conv, ConvTranspose)):
        return "patches" if math.prod(op.weight.shape[1:]) <= PATCH_LIMIT else "separable"
    return "patches" if op.weight.shape[1] <= FEATURE_LIMIT else "diagonal"


def has_regression(op: Op, basis: Array | None) -> bool:
    """Return whether a layer is refitted: `RegressionSums` of it are gathered.

    The square of the outputs of a large vocabulary would take gigabytes, and so would that of wide
    patches where nothing shorter stands in for them; such a layer is decomposed by its moments
    alone.

    Args:
        op: the layer.
        basis: (groups, channels, rank), what its inputs are projected on at every position; None
            where they are taken as they are.
    """
    if isinstance(op, Embedding) or op.weight.shape[0] // op.groups > FEATURE_LIMIT:
        return False
    if input_form(op) != "separable":
        return input_form(op) == "patches"
    return basis is not None and regressors(op, basis) <= REGRESSOR_LIMIT


def regressors(op: Op, basis: Array | None) -> int:
    """Return the length of a row of the inputs, projected on a basis if there is one."""
    width: int = math.prod(op.weight.shape[1:])
    return width if basis is None else width // basis.shape[1] * basis.shape[2]


def full_gradients(op: Op) -> bool:
    """Return whether the gradient moment of a layer is a matrix; else its diagonal is gathered."""
    out = op.weight.shape[1] if isinstance(op, Embedding) else op.weight.shape[0] // op.groups
    return bool(out <= PATCH_LIMIT)


def predictions(moments: Mapping[str, LayerMoments], layers: Mapping[str, Op]) -> int:
    """Return how many predictions calibration data has: examples, or tokens predicted one by one.

    The layer that is used least often tells which, since the last one runs once per prediction;
    tables do not, they may be looked up for positions alone.
    """
    # Of one layer at a time: their arrays may be read anew for it.
    counts: dict[bool, list[int]] = {False: [], True: []}
    for path, layer in moments.items():
        count = int(layer.samples * max(1.0, layer.positions_per_example))
        counts[isinstance(layers[path], Embedding)].append(count)
    return min(counts[False] or counts[True], default=0)
