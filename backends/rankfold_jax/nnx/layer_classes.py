"""Stock NNX layers, and the attributes that they compute with."""

from __future__ import annotations

import inspect

from flax import nnx

KINDS: tuple[type[nnx.Module], ...] = (
    nnx.Linear,
    nnx.LinearGeneral,
    nnx.Einsum,
    nnx.Conv,
    nnx.ConvTranspose,
    nnx.Embed,
)
OPTIONS = ("dtype", "param_dtype", "precision", "promote_dtype", "preferred_element_type")
"""Options that every layer of a chain has, too, if the layer replaced has them."""
ARRAYS = ("kernel", "embedding", "bias")
# Flax's layers keep the arguments of their constructor under the same names. Initializers and
# metadata have no effect once the arrays are there.
CONSTANTS = frozenset(
    name
    for kind in KINDS
    for name in inspect.signature(kind.__init__).parameters
    if name not in ("self", "rngs") and not name.endswith(("_init", "_metadata"))
)
"""Attributes that the computation of a stock layer is made with."""


def kind_of(module: nnx.Module) -> type[nnx.Module] | None:
    """Return the stock class whose computation the module does; None for others."""
    # By methods, not by class: a subclass that overrides none of them computes the same.
    for kind in KINDS:
        if isinstance(module, kind) and all(
            getattr(type(module), name, None) is getattr(kind, name, None)
            for name in ("__call__", "attend")
        ):
            return kind
    return None


def kernel_name(module: nnx.Module) -> str:
    """Return the attribute that holds the kernel of a stock layer."""
    return "embedding" if isinstance(module, nnx.Embed) else "kernel"
