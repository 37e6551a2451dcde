"""The stock NNX layers: which they are, and the attributes that they compute with."""

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
"""The options that every layer of a chain has, too, if the layer replaced has them."""
ARRAYS = ("kernel", "embedding", "bias")
CONSTANTS = frozenset(
    name
    for kind in KINDS
    for name in inspect.signature(kind.__init__).parameters
    if name not in ("self", "rngs") and not name.endswith(("_init", "_metadata"))
)
"""The attributes that the computation of a stock layer is made with."""


def kind_of(module: nnx.Module) -> type[nnx.Module] | None:
    """The stock class whose computation the module does, if any."""
    for kind in KINDS:
        if isinstance(module, kind) and all(
            getattr(type(module), name, None) is getattr(kind, name, None)
            for name in ("__call__", "attend")
        ):
            return kind
    return None


def kernel_name(module: nnx.Module) -> str:
    """The attribute that holds the kernel of a stock layer."""
    return "embedding" if isinstance(module, nnx.Embed) else "kernel"
