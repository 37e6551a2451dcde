"""Who reaches into a layer besides calling it: read off the source of the modules' methods.

Replacing `self.proj` breaks a parent whose forward reads `self.proj.weight`. Every method that
`forward` reaches through calls on `self` is parsed once per class, and each attribute path rooted
at `self` that leads to a layer and on to something a replacement does not have is reported. What
cannot be seen this way (a read through a local variable, say) shows when the model is traced.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from torch import nn

_PARTS = frozenset({"weight", "bias", "_parameters", "_buffers", "reset_parameters"})
_KEYWORD = "input"
Reads = dict[int, str]
Use = tuple[tuple[str, ...], str]

_known: WeakKeyDictionary[type, tuple[Use, ...]] = WeakKeyDictionary()


def reads_of(model: nn.Module) -> Reads:
    """By id of a module in the model, what is read from it besides calling it, as reasons."""
    found: Reads = {}
    for module in model.modules():
        for route, what in _uses(type(module)):
            for reached in _follow(module, route):
                found.setdefault(id(reached), f"{what} by {type(module).__name__}.forward")
    return found


def _follow(module: nn.Module, route: tuple[str, ...]) -> Iterator[nn.Module]:
    """The modules that a path of names stands for; "*" is any child (an index)."""
    if not route:
        yield module
        return
    name, *rest = route
    children = module._modules.values() if name == "*" else (module._modules.get(name),)
    for child in children:
        if isinstance(child, nn.Module):
            yield from _follow(child, tuple(rest))


def _uses(cls: type) -> tuple[Use, ...]:
    if cls not in _known:
        _known[cls] = tuple(dict.fromkeys(_parsed(cls)))
    return _known[cls]


def _parsed(cls: type) -> list[Use]:
    """The uses of children in `forward` and in every method it calls on self."""
    pending, seen = ["forward"], {"forward"}
    uses: list[Use] = []
    while pending:
        tree = _method(cls, pending.pop())
        if tree is None:
            continue
        for node in ast.walk(tree):
            uses.extend(_use(node))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = node.attr
                if node.value.id == "self" and name not in seen and hasattr(cls, name):
                    seen.add(name)
                    pending.append(name)
    return uses


def _method(cls: type, name: str) -> ast.AST | None:
    method = inspect.getattr_static(cls, name, None)
    if isinstance(method, (staticmethod, classmethod)):
        method = method.__func__
    if isinstance(method, property):
        method = method.fget
    method = inspect.unwrap(method) if callable(method) else None
    if method is None or getattr(nn.Module, name, None) is method:
        return None
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return None


def _use(node: ast.AST) -> Iterator[Use]:
    if isinstance(node, ast.Attribute) and node.attr in _PARTS:
        route = _route(node.value)
        if route:
            yield route, f"its {node.attr} is read"
    if isinstance(node, ast.Call):
        route = _route(node.func)
        plain = len(node.args) <= 1 and all(k.arg == _KEYWORD for k in node.keywords)
        if route and not plain:
            yield route, "it is called with more than its input"


def _route(node: ast.AST) -> tuple[str, ...]:
    """The names from `self` to a node: self.a[0].b gives ("a", "*", "b"); () for anything else."""
    names: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
        elif isinstance(node, ast.Subscript):
            names.append("*")
        else:
            return ()
        node = node.value
    return tuple(reversed(names)) if node.id == "self" else ()
