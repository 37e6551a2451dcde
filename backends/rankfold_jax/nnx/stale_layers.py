"""Search for what an NNX model should no longer lead to, once layers have been replaced.

`nnx.clone` copies what the graph of a model reaches. What closures, partials and other static
attributes hold is shared with the model, so a copy may go on calling layers of the model, and a
model that is changed itself may go on calling a layer that was replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import jax
import numpy as np
from flax import nnx

from rankfold.errors import RankfoldError
from rankfold.state.object_graph import held_by, reached
from rankfold_jax.nnx.module_tree import attributes, modules, variables

_FRAMEWORK = ("jax.", "flax.")
# The search stops at these: they lead nowhere, and reading an array would wait for its values.
_LEAVES = (nnx.Variable, jax.Array, np.ndarray)


def check_apart(copy: nnx.Module, model: nnx.Module) -> None:
    """Check that a copy of a model does not lead to the model.

    Raises:
        RankfoldError: it does.
    """
    in_copy = {id(module) for module in modules(copy).values()}
    names: dict[int, str] = {}
    for path, module in modules(model).items():
        # Modules that both lead to are left out: the clone shares them.
        if id(module) not in in_copy:
            names |= _parts(module, path)
    for target, word in _holders(copy, names).items():
        raise RankfoldError(
            f"{word} of the model holds the model's {names[target] or 'own self'!r} by closure, "
            "partial or alike, which a copy would go on using; pass inplace=True"
        )


def kept(model: nnx.Module, old: Mapping[str, nnx.Module]) -> dict[str, str]:
    """Return by path why layers must be left alone, as something still holds their parts.

    Args:
        model: in which they were replaced.
        old: the layers, by path.
    """
    targets = {part: path for path, layer in old.items() for part in _parts(layer, path)}
    return {
        targets[target]: f"it is also held by {word}, where no other can take its place"
        for target, word in _holders(model, targets).items()
    }


def _parts(module: nnx.Module, path: str) -> dict[int, str]:
    """Return the ids of a module and its Variables, each with its name."""
    named = {id(value): f"{path}.{name}" for name, value in variables(module).items()}
    return {id(module): path, **named}


def _holders(model: nnx.Module, targets: Collection[int]) -> dict[int, str]:
    # Each module of the model is a start of its own, so that the one nearest to a target names it.
    known = {id(module) for module in modules(model).values()}
    return reached(
        _starts(model), targets, known=known - set(targets), leaves=_LEAVES, framework=_FRAMEWORK
    )


def _starts(model: nnx.Module) -> Iterator[tuple[str, object]]:
    for path, module in modules(model).items():
        for name, value in attributes(module):
            yield f"{f'{path}.{name}'.lstrip('.')!r} ({type(value).__name__})", value
        yield from held_by(type(module), _FRAMEWORK)
