"""Paddings of Flax's convolutions, and their counterparts in the geometry of an op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from rankfold.errors import Refused
from rankfold.ops import Conv, geometry
from rankfold.ops.geometry import Pairs

LaxPadding: TypeAlias = str | Pairs

_STRINGS = {"SAME": "same", "SAME_LOWER": "same_lower", "VALID": "valid"}
_MODES = {"CIRCULAR": "circular", "REFLECT": "reflect"}
_NAMES = {ours: theirs for theirs, ours in _STRINGS.items()}


def pads(padding: LaxPadding, reach: tuple[int, ...]) -> tuple[str | Pairs, str]:
    """Return the padding and padding_mode of an op for a padding of Flax.

    Raises:
        Refused: Flax would refuse it, too.
    """
    if not isinstance(padding, str):
        return padding, "zeros"
    if padding in _MODES:
        # Flax pads these by itself, the smaller half first, whatever the stride.
        return tuple(((r - 1) // 2, r // 2) for r in reach), _MODES[padding]
    # An output sees no later input; Flax has it along one axis only.
    if padding == "CAUSAL" and len(reach) == 1:
        return ((reach[0] - 1, 0),), "zeros"
    if padding not in _STRINGS:
        raise Refused(f"padding {padding!r} is unknown")
    return _STRINGS[padding], "zeros"


def padding_of(op: Conv) -> LaxPadding:
    """Return the padding of Flax for that of an op.

    Raises:
        Refused: there is none.
    """
    geo = geometry(op)
    if isinstance(geo.padding, str):
        if op.padding_mode == "zeros":
            return _NAMES[geo.padding]
    # No padding in any mode is "VALID".
    elif not any(side for pair in geo.padding for side in pair):
        return "VALID"
    elif op.padding_mode == "zeros":
        return geo.padding
    else:
        for name, mode in _MODES.items():
            if mode == op.padding_mode and geo.padding == pads(name, geo.reach)[0]:
                return name
    raise Refused(f"Flax has no padding {geo.padding} in mode {op.padding_mode!r}")


def lax_padding(padding: object, axes: int) -> LaxPadding:
    """Return a padding of a convolution as Flax takes it, canonical: a string or pairs.

    The names that Flax hands on to JAX may be in any case, those that it knows itself may not.

    Raises:
        Refused: Flax would refuse it, too.
    """
    if isinstance(padding, str):
        # JAX compares names without case, Flax its own ("CIRCULAR", "REFLECT", "CAUSAL") with it.
        return padding.upper() if padding.upper() in _STRINGS else padding
    values = (padding,) * axes if isinstance(padding, int) else padding
    if isinstance(values, Sequence) and len(values) == axes:
        pairs = [(p, p) if isinstance(p, int) else p for p in values]
        if all(isinstance(p, Sequence) and len(p) == 2 for p in pairs):
            return tuple((int(p[0]), int(p[1])) for p in pairs)
    raise Refused(f"padding {padding!r} is none of Flax's")


def transposed_padding(padding: object, reach: tuple[int, ...]) -> LaxPadding:
    """Return a padding of a transposed convolution as Flax takes it, canonical: a string or pairs.

    `lax.conv_transpose` knows "SAME" and "VALID" as they are written here. Any other way to write
    them, and "SAME_LOWER", is the padding of the convolution of the dilated input.

    Args:
        padding: of the layer.
        reach: what its dilated kernel spans along each axis.

    Raises:
        Refused: Flax would refuse it, too.
    """
    if padding in ("SAME", "VALID"):
        return str(padding)
    canonical = lax_padding(padding, len(reach))
    if canonical == "VALID":
        return ((0, 0),) * len(reach)
    if canonical in ("SAME", "SAME_LOWER"):
        pairs = tuple(((r - 1) // 2, r // 2) for r in reach)
        return pairs if canonical == "SAME" else tuple((high, low) for low, high in pairs)
    return canonical


def per_axis(value: int | Sequence[int] | None, axes: int) -> tuple[int, ...]:
    """Return an option as Flax takes it, one int per axis; None counts as 1."""
    if value is None or isinstance(value, int):
        return (1 if value is None else value,) * axes
    return tuple(value)


def reach_of(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of input elements that a dilated kernel spans along each axis."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
