"""Modules of an NNX model: their paths, their sharing and their exchange."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from rankfold.errors import RankfoldError

# Beginning of the names under which Flax keeps its own state on a node.
_HIDDEN = "_pytree__"


def modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """Return every module once, in the order in which attributes were set: path to module.

    Raises:
        RankfoldError: two have the same path, as a key with a dot can bring about.
    """
    first: dict[int, None] = {}
    by_path = {}
    for path, module in paths(model):
        if id(module) not in first:
            first[id(module)] = None
            if path in by_path:
                raise RankfoldError(f"two modules have the path {path!r}; rename one's attribute")
            by_path[path] = module
    return by_path


def paths(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """Yield every module under every path that leads to it; "" is the model itself."""
    yield from _paths(model, (), ())


def _paths(
    node: Any, path: tuple[str, ...], above: tuple[int, ...]
) -> Iterator[tuple[str, nnx.Module]]:
    # Only what lies above ends the walk: a shared module is met under each of its paths, and a
    # cycle is left where it closes.
    if id(node) in above:
        return
    if isinstance(node, nnx.Module):
        yield ".".join(path), node
    for name, child in children(node):
        yield from _paths(child, (*path, name), (*above, id(node)))


def nodes(model: nnx.Module) -> list[object]:
    """Return every module and every Variable once."""
    known: dict[int, object] = {}
    waiting: list[Any] = [model]
    seen: dict[int, Any] = {}  # kept, so that no id is given away
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        if isinstance(node, nnx.Pytree | nnx.Variable):
            known[id(node)] = node
        waiting.extend(child for _, child in children(node))
    return list(known.values())


def children(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a module, a container or another pytree holds, by name; nothing for a leaf."""
    if isinstance(node, nnx.Variable | jax.Array | str | bytes | int | float) or node is None:
        return
    if isinstance(node, nnx.Pytree):
        yield from attributes(node)
    elif isinstance(node, Mapping):
        yield from ((str(name), value) for name, value in node.items())
    elif isinstance(node, list | tuple):
        yield from ((str(index), value) for index, value in enumerate(node))
    else:
        # Any other registered pytree. A node without children is a leaf, and gives itself.
        for path, value in _one_level(node)[0]:
            if value is not node:
                yield jax.tree_util.keystr(path, simple=True, separator="."), value


def attributes(node: nnx.Pytree) -> Iterator[tuple[str, Any]]:
    """Yield what a module holds by name, static attributes included."""
    for name, value in list(vars(node).items()):
        if not name.startswith(_HIDDEN):
            yield name, value


def exchanged(node: Any, new: Mapping[int, nnx.Module], seen: dict[int, Any]) -> Any:
    """Return a node with modules exchanged by identity, wherever it holds them.

    Modules, dicts and lists are changed in place; what cannot be is made anew if need be.

    Args:
        node: a module or anything that one holds.
        new: by id of a module, what comes in its place.
        seen: by id of a node, what has become of it; filled on the way.
    """
    if id(node) in new:
        return new[id(node)]
    if id(node) in seen:
        return seen[id(node)]
    seen[id(node)] = node
    # Its items are attributes beneath, which are to be set by index.
    if isinstance(node, nnx.List):
        for index, item in enumerate(list(node)):
            changed = exchanged(item, new, seen)
            if changed is not item:
                node[index] = changed
        return node
    if isinstance(node, nnx.Pytree):
        for name, value in children(node):
            changed = exchanged(value, new, seen)
            if changed is not value:
                # Flax takes a plain container for a static attribute and refuses modules in it,
                # unless it is marked as data.
                data = changed if isinstance(changed, nnx.Pytree) else nnx.data(changed)
                setattr(node, name, data)
        return node
    if isinstance(node, dict | list):
        # A list of the items, as the container is changed within the loop.
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            changed = exchanged(value, new, seen)
            if changed is not value:
                node[key] = changed
        return node
    seen[id(node)] = _made_anew(node, new, seen)
    return seen[id(node)]


def _made_anew(node: Any, new: Mapping[int, nnx.Module], seen: dict[int, Any]) -> Any:
    # Leaves, among them what JAX does not know as a pytree at all.
    if not any(True for _ in children(node)):
        return node
    values, tree = _one_level(node)
    items = [exchanged(value, new, seen) for _, value in values]
    if all(a is b for a, (_, b) in zip(items, values, strict=True)):
        return node
    return jax.tree_util.tree_unflatten(tree, items)


def _one_level(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda value: value is not node)


def variables(module: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """Return the Variables that a module holds itself, by attribute."""
    return {name: value for name, value in vars(module).items() if isinstance(value, nnx.Variable)}
