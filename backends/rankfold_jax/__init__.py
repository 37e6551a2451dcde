"""The JAX adapters, for Flax NNX and Flax Linen: their declaration, which imports no framework."""

from collections.abc import Iterable

from rankfold.adapters.tensor_rules import TensorRule
from rankfold.plugins import AdapterSpec, Demo, FileFormat, hookimpl
from rankfold_jax.tensor_rules import FLAX_TENSORS

RANKFOLD_API = (1, 7)
_INSTALL = "pip install 'rankfold[jax]'"


@hookimpl
def rankfold_adapters() -> Iterable[AdapterSpec]:
    """Registers "nnx" and "linen" for the modules of either."""
    return (
        AdapterSpec(
            name="nnx",
            model_types=("flax.nnx.module:Module",),
            target="rankfold_jax.nnx.adapter:NNXAdapter",
            formats=(
                FileFormat(
                    kind="an orbax checkpoint",
                    suffixes=(),
                    signatures=(),
                    read="rankfold_jax.orbax_reader:OrbaxFolder",
                    install=_INSTALL,
                    keyed=True,
                    marker="_METADATA",
                ),
            ),
            demo=Demo("jax", "rankfold_jax.demo:JaxDemo", "pip install 'rankfold[demo-jax]'"),
            install=_INSTALL,
        ),
        AdapterSpec(
            name="linen",
            model_types=("flax.linen.module:Module",),
            target="rankfold_jax.linen.adapter:LinenAdapter",
            install=_INSTALL,
        ),
    )


@hookimpl
def rankfold_layer_rules() -> Iterable[TensorRule]:
    """Declare how layers lie in a checkpoint."""
    return FLAX_TENSORS
