"""Texts that tell values apart from run to run, as a `repr` with an address in it does not."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from types import FunctionType

import numpy as np

_SCALARS = (type(None), bool, int, float, complex, str, bytes)


class _Plain:
    pass


_PLAIN_BYTES = _Plain.__basicsize__
"""The size of an object whose class has no fields but the instance's dictionary."""


def description(value: object, around: tuple[object, ...] = ()) -> str:
    """Return a text that is the same in every process for equal values, and for no others.

    Args:
        value: a setting: a policy, whoever has written it, or what one consists of.
        around: the values that this one is part of.
    """
    if isinstance(value, _SCALARS):
        return repr(value)
    if any(value is other for other in around):  # it holds itself
        return f"{len(around)}"
    around = (*around, value)
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype}{value.shape}{content}"
    kind = _name(type(value))
    if type(value) is dict:  # in its order: the first pattern that matches counts
        pairs = (f"{description(k, around)}: {description(v, around)}" for k, v in value.items())
        return f"{kind}({', '.join(pairs)})"
    # Subclasses are none of these: they may hold more than their items.
    if type(value) is list or type(value) is tuple:
        return f"{kind}({', '.join([description(part, around) for part in value])})"
    if type(value) is set or type(value) is frozenset:
        return f"{kind}({', '.join(sorted(description(part, around) for part in value))})"
    if isinstance(value, type | FunctionType):
        return _name(value)
    if dataclasses.is_dataclass(value):
        state = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    # Fields of C and slots are not in the dictionary; two such objects may differ in them alone.
    elif hasattr(value, "__dict__") and type(value).__basicsize__ <= _PLAIN_BYTES:
        state = dict(sorted(vars(value).items()))
    else:
        return repr(value)
    return f"{kind}({description(state, around)})"


def _name(value: type | FunctionType) -> str:
    """Return the name that a class or a function is imported by; the repr of any other."""
    # Two lambdas, or functions made by one, have one name and may do different things. Their reprs
    # differ, so that no work on one is taken for work on another, and none is gone on with.
    named: object = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        named = getattr(named, part, None)
    if named is value or isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)
