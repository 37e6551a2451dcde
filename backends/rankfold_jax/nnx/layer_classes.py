"""Stock NNX layers, and the attributes that they compute with."""

from __future__ import annotations

from flax import nnx

from rankfold_jax.layouts.stock_layers import parameters_of

KINDS: tuple[type[nnx.Module], ...] = (
    nnx.Linear,
    nnx.LinearGeneral,
    nnx.Einsum,
    nnx.Conv,
    nnx.ConvTranspose,
    nnx.Embed,
)
ARRAYS = ("kernel", "embedding", "bias")
# Flax's layers keep the arguments of their constructor under the same names. Initializers and
# metadata have no effect once the arrays are there.
CONSTANTS = frozenset(
    name
    for kind in KINDS
    for name in parameters_of(kind)
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
