"""Weighted norm tr(G ΔW C ΔWᵀ) of an error ΔW of a layer's weight, from moments of calibration.

C is the second moment of the input and G that of the gradient at the output. Moments of few samples
are unreliable, so both are shrunk towards a multiple of the identity by as much as their sample
size demands (oracle approximating shrinkage: Chen, Wiesel, Eldar and Hero, IEEE Trans. Signal
Process. 58, 2010). Neither is ever singular then, and two examples leave little but the plain norm.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import overload

import numpy as np

from rankfold import linalg
from rankfold.calibration.moment_checks import check_moments
from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.calibration.shrinkage import Shrinkage, oas_shrinkage, shrunken
from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Embedding, Op

POSITIONS = 16
"""As how many samples the positions of one example count, at most: neighbours are correlated, so
that an image of 56×56 positions is not worth 3136 independent ones."""
_FLOOR = 1e-6
"""Least eigenvalue of G over the largest, about: its inverse root stays below 1e3."""

_ROUNDING = 8 * float(np.finfo(np.float32).eps)
"""Relative to the mean square: below it, a variance is the rounding of sums in float32."""
_SINGLE = 4.0
"""Least eigenvalue of a moment from which on products with it are made in float32, over what is the
rounding of such a product, ε √d times the largest variance: a Cholesky factor exists, and losses,
which are means over many directions, are good to 1e-3."""


class Metric:
    """Weighted norm of errors of one layer's weight, as rows (groups, out/groups, d).

    An `Embedding` is measured as the transpose of its table, (1, dim, rows). All is computed where
    the weight of the layer is; moments that are elsewhere are moved there.

    Args:
        op: the layer.
        moments: of the layer.

    Raises:
        Refused: the moments have the shape of another layer, or are not finite.

    Attributes:
        mean: E[x] (groups, d) where an error of the mean output can go into a bias, else None.
        positions_per_example: of the layer.
        samples: how many examples the moments are of.
        unit: what a squared error of 1 is worth in the loss, per position; 0 where the layer never
            counts, because its inputs or its gradients are all zero.
    """

    def __init__(self, op: Op, moments: LayerMoments) -> None:
        check_moments(op, moments)
        table = isinstance(op, Embedding)
        self._into = op.weight.shape[0] if table else op.weight.shape[1]
        self._taps = 1 if table else math.prod(op.weight.shape[2:])
        self.positions_per_example = moments.positions_per_example
        self.samples = moments.samples
        inputs, self.mean = _inputs(op, moments)
        samples = round(moments.samples * min(POSITIONS, max(1.0, moments.positions_per_example)))
        inputs, self.unit = _without_unit(inputs)
        self._set_inputs(inputs, self.unit, samples)
        self._grads: Array | None = None
        self._root: Array | None = None
        if moments.grads is not None:
            grads = linalg.like(moments.grads, op.weight)
            if not linalg.is_single(grads) or grads.ndim == 2:
                grads = linalg.double(grads)
            if not linalg.is_finite(grads):
                raise Refused("the moments of its gradients are not finite")
            grads, worth = _without_unit(grads)
            shrinkage = oas_shrinkage(grads, samples)
            self._grads = _regular(shrunken(_precise(grads, shrinkage), shrinkage))
            # Any L with L Lᵀ = G serves as the symmetric root does: all that it weights is rotated
            # alike. A Cholesky factor costs a thirtieth of an eigendecomposition.
            diagonal = self._grads.ndim == 2
            root = linalg.namespace(grads).sqrt if diagonal else linalg.cholesky
            try:
                self._root = root(self._grads)
            except np.linalg.LinAlgError:  # sums near the least number of their type are rough
                raise Refused("the moments of its gradients vanish in their type") from None
            self.unit *= worth

    def with_inputs(self, inputs: Array, mean: Array | None) -> Metric:
        """Return the same measure of outputs with another moment of the inputs.

        Args:
            inputs: (groups, d, d), centred if a mean is given; taken without shrinkage.
            mean: (groups, d) or None.
        """
        other = copy.copy(self)
        inputs, unit = _without_unit(inputs)
        other.unit = self.unit / self._inputs_unit * unit if self._inputs_unit else 0.0
        other._set_inputs(inputs, unit, None)
        other.mean = mean
        return other

    def _set_inputs(
        self, moment: Array | SeparableMoment, unit: float, samples: int | None
    ) -> None:
        """Take a moment over its unit; shrink it unless it is the mean of no samples."""
        self._inputs: Array | None = None  # made when they are asked for
        self._channels: Array | None = None
        self._inputs_unit = unit
        self._moment = moment
        if isinstance(moment, SeparableMoment):
            self._shrunken = moment if samples is None else moment.shrunken(samples)
            return
        ones = np.ones(len(moment))
        self._shrinkage = (
            Shrinkage(ones, 0.0 * ones) if samples is None else oas_shrinkage(moment, samples)
        )
        self._moment = linalg.read_only(_precise(moment, self._shrinkage))

    @property
    def input_variance(self) -> Array:
        """Mean variance of the inputs in their units, around 0 without a mean; on the host.

        (groups,)
        """
        diagonal = linalg.host(_diagonal(self._moment))
        variance: Array = self._inputs_unit * diagonal.mean(axis=1, dtype=np.float64)
        return variance

    @property
    def inputs(self) -> Array | SeparableMoment:
        """C without units, the largest variance of the inputs being 1."""
        if isinstance(self._moment, SeparableMoment):
            return self._shrunken
        if self._inputs is None:
            self._inputs = linalg.read_only(shrunken(self._moment, self._shrinkage))
        return self._inputs

    def weight_outputs(self, rows: Array) -> Array:
        """Return Lᵀ A for A (groups, out/groups, n), where L Lᵀ = G."""
        if self._root is None:
            return rows
        if self._root.ndim == 2:
            scaled: Array = rows * self._root[:, :, None]
            return scaled
        return linalg.double(self._root.mT @ linalg.cast(rows, self._root.dtype))

    def unweight_outputs(self, rows: Array) -> Array:
        """Return L^-ᵀ A for A (groups, out/groups, n)."""
        if self._root is None:
            return rows
        if self._root.ndim == 2:
            scaled: Array = rows / self._root[:, :, None]
            return scaled
        return linalg.solve_triangular(linalg.double(self._root), rows, transposed=True)

    def spread_outputs(self, columns: Array) -> Array:
        """Return L A for A (groups or 1, out/groups, n), the transpose of weighting."""
        if self._root is None:
            return columns
        if self._root.ndim == 2:
            scaled: Array = self._root[:, :, None] * columns
            return scaled
        return linalg.product(self._root, columns)

    def trace(self, square: Array) -> float:
        """Return tr(G A) for A (groups, out/groups, out/groups)."""
        if self._grads is None:
            return float(linalg.einsum("goo->", square))
        if self._grads.ndim == 2:
            return float(linalg.einsum("goo,go->", square, self._grads))
        return float(linalg.einsum("goq,goq->", self._grads, square))

    def inner(self, left: Array, right: Array) -> float:
        """Return tr(G A Bᵀ) for A and B (groups, out/groups, n)."""
        if self._grads is None:
            return linalg.inner(left, right)
        if self._grads.ndim == 2:  # the diagonal of A Bᵀ is all that counts
            return linalg.inner(self._grads[:, :, None] * left, right)
        weighted = self._grads @ linalg.cast(left, self._grads.dtype)
        return linalg.inner(linalg.double(weighted), right)

    def apply_input_moment(self, rows: Array) -> Array:
        """Return A C for A (groups, n, d)."""
        if isinstance(self._moment, SeparableMoment):
            return self._shrunken.products(rows)
        return self._shrunken_products(rows, self._products(rows))

    def times_root(self, rows: Array) -> Array:
        """Return A R for A (groups, n, d), where R Rᵀ = C."""
        inputs = self.inputs
        if isinstance(inputs, SeparableMoment):
            return inputs.root_products(rows)
        if inputs.ndim == 2:
            scaled: Array = rows * linalg.root(inputs)[:, None, :]
            return scaled
        try:
            root = linalg.cholesky(inputs)
        except np.linalg.LinAlgError:  # to rounding, C is singular
            eigen = linalg.eigh(linalg.double(inputs))
            root = linalg.scaled(eigen.vectors, np.sqrt(eigen.values), 2)
        return linalg.double(linalg.cast(rows, root.dtype) @ root)

    @property
    def channels(self) -> Array:
        """Second moment of the channels, (groups, in/groups, in/groups), a mean over positions."""
        if self._channels is None:
            self._channels = self._mean_over_positions(self.inputs)
        return self._channels

    def _mean_over_positions(self, inputs: Array | SeparableMoment) -> Array:
        if isinstance(inputs, SeparableMoment):
            return inputs.channels
        if inputs.ndim == 2:
            return linalg.diagonal_matrices(inputs)
        if self._taps == 1:
            return linalg.double(inputs)
        split = inputs.reshape(-1, self._into, self._taps, self._into, self._taps)
        mean: Array = linalg.contracted(split, 2, 4) / self._taps
        return mean

    def squared(self, rows: Array) -> float:
        """Squared norm tr(G A C Aᵀ) of rows A (groups, out/groups, d), over `unit`."""
        return self.inner(self.apply_input_moment(rows), rows)

    def moved(self, rows: Array) -> MovedRows:
        """Return the product of rows A (groups, out/groups, d) with C."""
        products = self._products(rows)
        output = self._inputs_unit * linalg.inner(products, rows)
        return MovedRows(self._shrunken_products(rows, products), output)

    def _products(self, rows: Array) -> Array:
        """Return A E[x xᵀ], over the unit of the inputs and without shrinkage."""
        moment = self._moment
        if isinstance(moment, SeparableMoment):
            return moment.products(rows)
        if moment.ndim == 2:
            scaled: Array = rows * moment[:, None, :]
            return scaled
        # A product of the two precisions would be made in the higher, at the cost of a copy.
        return linalg.double(linalg.cast(rows, moment.dtype) @ moment)

    def _shrunken_products(self, rows: Array, products: Array) -> Array:
        if isinstance(self._moment, SeparableMoment):
            return self._shrunken.products(rows)
        kept, added = self._shrinkage.kept, self._shrinkage.added
        moved: Array = linalg.scaled(products, kept, 0) + linalg.scaled(rows, added, 0)
        return moved


def _inputs(op: Op, moments: LayerMoments) -> tuple[Array | SeparableMoment, Array | None]:
    """Return the moment of the inputs, and their mean where it is centred about that.

    Raises:
        Refused: it is not finite.
    """
    inputs = moments.inputs
    if isinstance(inputs, SeparableMoment):
        separable = inputs.like(op.weight)
        mean = linalg.double(linalg.like(moments.mean, op.weight))
        if not separable.is_finite or not linalg.is_finite(mean):
            raise Refused("the moments of its inputs are not finite")
        return (separable.with_mean(mean), None) if op.bias is None else (separable, mean)
    inputs = linalg.like(inputs, op.weight)
    if not linalg.is_single(inputs) or inputs.ndim == 2:
        inputs = linalg.double(inputs)
    if not linalg.is_finite(inputs):
        raise Refused("the moments of its inputs are not finite")
    if op.bias is None or inputs.ndim == 2:
        return inputs, None
    mean = linalg.read_only(linalg.double(linalg.like(moments.mean, op.weight)))
    return centred(inputs, linalg.cast(mean, inputs.dtype)), mean


def centred(moment: Array, mean: Array) -> Array:
    """Return the covariance E[x xᵀ] − E[x] E[x]ᵀ, exactly zero where an input never varies.

    Of a constant input the difference is rounding, of either sign, and no variance.

    Args:
        moment: E[x xᵀ], (groups, d, d).
        mean: E[x], (groups, d).
    """
    covariance: Array = moment - mean[:, :, None] * mean[:, None, :]
    varies = variances(linalg.diagonals(moment), mean) > 0.0
    return linalg.kept_where(varies[:, :, None] & varies[:, None, :], covariance)


def variances(mean_square: Array, mean: Array) -> Array:
    """Return E[x²] − E[x]², exactly zero where an input never varies."""
    variance: Array = mean_square - mean * mean
    return linalg.kept_where(variance > _ROUNDING * mean_square, variance)


@overload
def _without_unit(moment: Array) -> tuple[Array, float]: ...
@overload
def _without_unit(moment: SeparableMoment) -> tuple[SeparableMoment, float]: ...
def _without_unit(moment: Array | SeparableMoment) -> tuple[Array | SeparableMoment, float]:
    """Return a moment over its largest variance, and that; for a zero one the identity and 0.

    Squares of moments of the smallest and the largest activations would leave the range of
    float64, and a root of nothing could not be inverted.
    """
    largest = linalg.largest(_diagonal(moment))
    if isinstance(moment, SeparableMoment):
        if largest > 0.0:
            return moment.over(largest), largest
        shape = (*moment.variances.shape, moment.positions.shape[1])
        return SeparableMoment.identity(shape, moment.factor), 0.0
    if largest > 0.0:
        return moment / largest, largest
    if moment.ndim == 2:
        return moment * 0.0 + 1.0, 0.0
    return moment * 0.0 + linalg.identity(moment.shape[1], moment), 0.0


def _diagonal(moment: Array | SeparableMoment) -> Array:
    if isinstance(moment, SeparableMoment):
        return moment.diagonal
    return moment if moment.ndim == 2 else linalg.diagonals(moment)


def _regular(grads: Array) -> Array:
    """Return G with a share of the largest of all groups on its diagonal.

    The outputs of a group that never count would else be whitened by next to nothing, and their
    inverse exceed every range.
    """
    if grads.ndim == 2:
        return linalg.at_least(grads, _FLOOR * float(grads.max()))
    norms = np.sqrt(linalg.squares(grads))
    return linalg.loaded(grads, np.full(len(norms), _FLOOR * norms.max()))


def _precise(moment: Array, shrinkage: Shrinkage) -> Array:
    """Return a moment whose largest variance is 1, in float64 where float32 will not do."""
    if linalg.is_single(moment):
        rounding = float(np.finfo(np.float32).eps) * math.sqrt(moment.shape[1])
        if (shrinkage.added < _SINGLE * rounding * shrinkage.kept).any():
            return linalg.double(moment)
    return moment


@dataclass(frozen=True, eq=False)
class MovedRows:
    """Rows A (groups, out/groups, d) after the second moment C of the inputs.

    Attributes:
        rows: A C.
        output: the mean E‖A x‖² at one position, without shrinkage.
    """

    rows: Array
    output: float


def rows_of(op: Op) -> Array:
    """Return the weight as rows (groups, out/groups, d) in float64; of a table (1, dim, rows)."""
    weight = linalg.double(op.weight)
    if isinstance(op, Embedding):
        return weight.mT[None]
    return weight.reshape(op.groups, weight.shape[0] // op.groups, -1)
