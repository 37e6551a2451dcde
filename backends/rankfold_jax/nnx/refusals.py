"""Checks that refuse an NNX layer for what it is itself, or for what surrounds it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rankfold.errors import Refused
from rankfold_jax.nnx.interpolative import Interpolative
from rankfold_jax.nnx.layer_classes import KINDS, kernel_name, kind_of
from rankfold_jax.nnx.module_tree import children, paths, variables

_FLOATS = (jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16)
_READERS = (nnx.WeightNorm, nnx.SpectralNorm)


def check_class(module: nnx.Module) -> None:
    """Refuse a layer that is none of the stock layers, or computes something else.

    Raises:
        Refused: and why.
    """
    kind, name = kind_of(module), type(module).__name__
    if isinstance(module, Interpolative):
        raise Refused("interpolative already: expand the compressed layer to decompose it anew")
    if kind is not None:
        # Classes between the layer's and the stock one. Further public members are an interface
        # that a Sequential in its place would not have.
        above = type(module).__mro__[: type(module).__mro__.index(kind)]
        parts = sorted({part for cls in above for part in vars(cls) if not part.startswith("_")})
        if parts:
            raise Refused(f"{name} has {parts[0]!r} besides what nnx.{kind.__name__} has")
        return
    if isinstance(module, KINDS):
        raise Refused(f"{name} has a call of its own")
    raise Refused(f"no rule reads a {name}")


def check_state(module: nnx.Module) -> None:
    """Refuse a stock layer for what it holds, or for the kind of its arrays.

    Raises:
        Refused: and why.
    """
    arrays = {kernel_name(module), "bias"}
    if getattr(module, "mask", None) is not None:
        raise Refused("masked")
    extra = [
        name
        for name, value in children(module)
        if name not in arrays and isinstance(value, nnx.Pytree | nnx.Variable | jax.Array)
    ]
    if extra:
        raise Refused(f"it holds {', '.join(sorted(extra))} besides {' and '.join(sorted(arrays))}")
    for name, variable in variables(module).items():
        # 'hijax' Variables, where Flax has them, are no ordinary containers of one array.
        if not hasattr(variable, "get_metadata"):
            raise Refused(f"its {name} is a Variable of the kind 'hijax'")
        metadata = variable.get_metadata()
        for kind in ("hijax", "ref"):
            if metadata.get(kind):
                raise Refused(f"its {name} is a Variable of the kind {kind!r}")
        value = variable.get_raw_value()
        if not isinstance(value, jax.Array | jax.ShapeDtypeStruct) and not hasattr(value, "dtype"):
            raise Refused(f"its {name} is a {type(value).__name__}, not an array")
        # With several processes each has a part of the numbers alone.
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            raise Refused(f"its {name} lies on devices of other processes")
        if value.dtype not in _FLOATS:
            raise Refused(f"its {name} is {value.dtype}; a float dtype is needed")
        # Variables run functions of their metadata, such as on_set_value and on_get_value.
        hooks = [key for key in metadata if key.startswith("on_")]
        if any(metadata[hook] for hook in hooks):
            raise Refused(f"its {name} has the hook {hooks[0]}, which would be lost")
    if not isinstance(getattr(module, kernel_name(module), None), nnx.Variable):
        raise Refused(f"its {kernel_name(module)} is no nnx.Variable")


class ModuleUsage:
    """Uses that the modules of a model make of each other, gathered once.

    Args:
        model: the model; it must not change while this is in use.
    """

    def __init__(self, model: nnx.Module) -> None:
        self._holders: dict[int, list[tuple[Any, str]]] = {}
        self._above: dict[int, str] = {}
        seen: set[int] = set()
        for path, module in paths(model):
            if isinstance(module, _READERS):
                # These wrappers compute the kernel of a layer below themselves and put it in.
                self._above.update({id(below): type(module).__name__ for _, below in paths(module)})
            if id(module) in seen:
                continue
            seen.add(id(module))
            self._hold(module, module, path)

    def _hold(self, node: Any, owner: Any, path: str) -> None:
        for name, value in children(node):
            where = f"{path}.{name}".lstrip(".")
            if isinstance(value, nnx.Variable):
                self._holders.setdefault(id(value), []).append((owner, where))
            # Modules have a turn of their own; containers belong to the module that holds them.
            elif not isinstance(value, nnx.Module):
                self._hold(value, owner, where)

    def check(self, path: str, module: nnx.Module) -> None:
        """Refuse a layer for what surrounds it in the model.

        Raises:
            Refused: and why.
        """
        if id(module) in self._above:
            raise Refused(f"owned by nnx.{self._above[id(module)]}, which reads its kernel itself")
        for name, variable in variables(module).items():
            for owner, where in self._holders.get(id(variable), ()):
                if owner is not module:
                    raise Refused(f"tied: its {name} is also {where!r}")
