"""Operations on stacks of matrices that the array API standard lacks, on any library of it.

NumPy has each under a name of its own, by which its results keep their bits; for other libraries
they are put together from what the standard has. Nothing is written in place there: arrays of JAX
cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np

from rankfold.linalg.arrays import Array, cast, double, host, inner, like, namespace


def product(left: Array, right: Array) -> Array:
    """Return the matrix product, in the wider of two precisions, as NumPy makes it."""
    if isinstance(left, np.ndarray):
        multiplied: Array = np.matmul(left, right)
        return multiplied
    wide = namespace(left).result_type(left.dtype, right.dtype)
    return cast(left, wide) @ cast(right, wide)


def einsum(subscripts: str, *operands: Array, optimize: bool = False) -> Array:
    """Return sums of products in Einstein's notation, in the widest of the precisions.

    Args:
        subscripts: as NumPy's.
        operands: arrays of one library.
        optimize: whether the products are made pair by pair, which libraries other than NumPy do
            anyway.
    """
    xp = namespace(operands[0])
    if isinstance(operands[0], np.ndarray):
        summed: Array = np.einsum(subscripts, *operands, optimize=optimize)
    else:
        wide = xp.result_type(*(operand.dtype for operand in operands))
        summed = xp.einsum(subscripts, *(cast(operand, wide) for operand in operands))
    return summed


def concatenated(arrays: Sequence[Array], axis: int) -> Array:
    """Join arrays along an axis, in the widest of their precisions."""
    joined: Array = namespace(arrays[0]).concat(tuple(arrays), axis=axis)
    return joined


def selected(array: Array, indices: Sequence[int]) -> Array:
    """Return some elements along the first axis, copied."""
    if isinstance(array, np.ndarray):
        return array[list(indices)]
    taken: Array = namespace(array).take(array, like(np.asarray(indices), array), axis=0)
    return taken


def diagonals(matrices: Array) -> Array:
    """Return the diagonals (groups, n) of matrices (groups, n, n)."""
    if isinstance(matrices, np.ndarray):
        view: Array = np.einsum("gii->gi", matrices)
        return view
    diagonal: Array = namespace(matrices).linalg.diagonal(matrices)
    return diagonal


def traces(matrices: Array) -> Array:
    """Return the traces of matrices (groups, n, n), (groups,), on the host."""
    if isinstance(matrices, np.ndarray):
        summed: Array = np.trace(matrices, axis1=1, axis2=2)
        return summed
    return host(namespace(matrices).linalg.trace(matrices))


def loaded(matrices: Array, added: Array) -> Array:
    """Return matrices (groups, n, n) with numbers (groups,) added to their diagonals.

    Args:
        matrices: stay as they are.
        added: on the host.
    """
    size = matrices.shape[-1]
    if isinstance(matrices, np.ndarray):
        sums = np.array(matrices, order="C")
        sums.reshape(len(sums), -1)[:, :: size + 1] += added[:, None]
        return sums
    level = cast(like(added[:, None, None], matrices), matrices.dtype)
    return matrices + kept_where(identity(size, matrices) > 0.0, level)


def identity(size: int, array: Array) -> Array:
    """Return the identity in float64, made where an array is."""
    if isinstance(array, np.ndarray):
        return np.eye(size)
    import array_api_compat

    xp = namespace(array)
    eye: Array = xp.eye(size, dtype=xp.float64, device=array_api_compat.device(array))
    return eye


def scaled(array: Array, factors: Array, axis: int) -> Array:
    """Multiply along one axis by numbers of the host.

    Args:
        array: (groups, ...).
        factors: (groups, n), or (groups,) with axis 0.
        axis: of length n.
    """
    shape = [1] * array.ndim
    shape[0], shape[axis] = array.shape[0], array.shape[axis]
    product: Array = array * like(factors.reshape(shape), array)
    return product


def added_at(array: Array, index: tuple[slice, ...], part: Array) -> Array:
    """Add to a part of an array, in place where the library can; return the array."""
    if hasattr(array, "at"):  # JAX's are not written to
        sums: Array = array.at[index].add(part)
        return sums
    array[index] += part
    return array


def put(array: Array, indices: Sequence[int], part: Array) -> Array:
    """Put others in the place of some elements along the first axis; return the array.

    It is written to where the library can.
    """
    if hasattr(array, "at"):
        written: Array = array.at[np.asarray(indices)].set(part)
        return written
    array[list(indices)] = part
    return array


def squares(stack: Array) -> Array:
    """Return the squared norm of each array of a stack, (groups,), on the host."""
    if isinstance(stack, np.ndarray):
        return np.array([float(np.vdot(group, group)) for group in stack])
    flat = stack.reshape(stack.shape[0], -1)
    return host((flat * flat).sum(axis=1)).astype(np.float64)


def energy(array: Array) -> float:
    """Return the squared norm of an array, in float64."""
    if isinstance(array, np.ndarray):
        return float(np.square(array, dtype=np.float64).sum())
    return inner(double(array), double(array))


def largest(array: Array) -> float:
    """Return the largest element, or 0 where that is negative or there is none."""
    if isinstance(array, np.ndarray):
        return float(array.max(initial=0.0))
    return max(0.0, float(array.max())) if math.prod(array.shape) else 0.0


def contracted(array: Array, first: int, second: int) -> Array:
    """Return the sum in float64 over two axes whose indices are equal; both go.

    Args:
        array: any.
        first: an axis.
        second: a later axis of the same length.
    """
    if isinstance(array, np.ndarray):
        labels = list(range(array.ndim))
        labels[second] = labels[first]
        others = [label for label in labels if label != first]
        contraction: Array = np.einsum(array, labels, others, dtype=np.float64)
        return contraction

    def at(index: int) -> Array:
        where: list[int | slice] = [slice(None)] * array.ndim
        where[first] = where[second] = index
        return double(array[tuple(where)])

    return reduce(lambda a, b: a + b, map(at, range(array.shape[first])))


def along_channels(rows: Array, matrix: Array) -> Array:
    """Return A (M ⊗ 1) for A (groups, n, channels · positions) and M (groups, channels, k)."""
    groups, n, _ = rows.shape
    channels = matrix.shape[1]
    split = rows.reshape(groups, n, channels, -1).swapaxes(2, 3)
    moved = product(split.reshape(groups, -1, channels), matrix)
    turned: Array = moved.reshape(groups, n, -1, matrix.shape[2]).swapaxes(2, 3)
    return turned.reshape(groups, n, -1)


def both_sides(moment: Array, basis: Array) -> Array:
    """Return (V ⊗ 1)ᵀ M (V ⊗ 1) for M (groups, d, d) and V (groups, d / positions, rank)."""
    basis = cast(basis, moment.dtype)
    if not isinstance(moment, np.ndarray):
        # Two large products: on an accelerator, blocks would cost more in calls than they save.
        return along_channels(along_channels(moment, basis).mT, basis)
    # Block by block of two positions p and q: Vᵀ M_pq V, products of the order of V in place of
    # those of the order of the patch that V ⊗ 1 as a matrix would need. M_qp is the transpose of
    # M_pq. All is in the precision of the moment.
    groups, size, _ = moment.shape
    n, rank = basis.shape[1:]
    basis = basis[:, None]
    positions = size // n
    split = moment.reshape(groups, n, positions, n, positions)
    both = np.empty((groups, rank, positions, rank, positions), moment.dtype)
    for p in range(positions):
        blocks = np.ascontiguousarray(split[:, :, p, :, p:].transpose(0, 3, 1, 2))
        blocks = basis.mT @ blocks @ basis
        both[:, :, p, :, p:] = blocks.transpose(0, 2, 3, 1)
        both[:, :, p:, :, p] = blocks.transpose(0, 3, 1, 2)
    return both.reshape(groups, rank * positions, -1)


def diagonal_matrices(diagonal: Array) -> Array:
    """Return diagonal matrices (groups, n, n) of their diagonals (groups, n)."""
    eye = identity(diagonal.shape[1], diagonal)
    return kept_where(eye > 0.0, diagonal[:, :, None])


def repeated(matrices: Array, times: int) -> Array:
    """Return M ⊗ 1 (groups, n · times, n · times) of matrices M (groups, n, n)."""
    eye = identity(times, matrices)
    groups, n, _ = matrices.shape
    blocks = matrices[:, :, None, :, None] * eye[None, None, :, None, :]
    return blocks.reshape(groups, n * times, -1)


def kept_where(condition: Array, array: Array) -> Array:
    """Return an array with zeros where a condition does not hold, whatever it has there."""
    xp = namespace(array)
    if isinstance(array, np.ndarray):
        return np.where(condition, array, 0.0)
    return xp.where(condition, array, xp.zeros_like(array))


def at_least(array: Array, least: float) -> Array:
    """Return an array with smaller elements raised to a number."""
    raised: Array = namespace(array).clip(array, least, None)
    return raised


def root(array: Array) -> Array:
    """Return square roots; 0 of what is negative."""
    return namespace(array).sqrt(at_least(array, 0.0))  # type: ignore[no-any-return]  # any namespace
