"""Who reaches into a layer besides calling it: read off the source of the modules' methods.

Replacing `self.proj` breaks a parent whose forward reads `self.proj.weight`. Every method that
`forward` reaches through calls on `self` is parsed once per class, and each attribute path rooted
at `self` that leads to a layer and on to something a replacement does not have is reported. What
cannot be seen this way (a read in a helper function, say) shows when the model is traced.
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
Route = tuple[str, ...]
Use = tuple[Route, str]

_known: WeakKeyDictionary[type, tuple[Use, ...]] = WeakKeyDictionary()


def reads_of(model: nn.Module) -> Reads:
    """By id of a module in the model, what is read from it besides calling it, as reasons."""
    found: Reads = {}
    for module in model.modules():
        for route, what in _uses(type(module)):
            for reached in _follow(module, route):
                found.setdefault(id(reached), f"{what} by {type(module).__name__}.forward")
    return found


def _follow(module: nn.Module, route: Route) -> Iterator[nn.Module]:
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
        function = _method(cls, pending.pop())
        if function is None or not function.args.args:
            continue
        own = function.args.args[0].arg
        names = _aliases(function, own)
        for node in ast.walk(function):
            uses.extend(_use(node, names))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = node.attr
                if node.value.id == own and name not in seen and hasattr(cls, name):
                    seen.add(name)
                    pending.append(name)
    return uses


def _method(cls: type, name: str) -> ast.FunctionDef | None:
    method = inspect.getattr_static(cls, name, None)
    if isinstance(method, (staticmethod, classmethod)):
        method = method.__func__
    if isinstance(method, property):
        method = method.fget
    method = inspect.unwrap(method) if callable(method) else None
    if method is None or getattr(nn.Module, name, None) is method:
        return None
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(method))).body
    except (OSError, TypeError, SyntaxError):
        return None
    return body[0] if body and isinstance(body[0], ast.FunctionDef) else None


def _aliases(function: ast.FunctionDef, own: str) -> dict[str, Route]:
    """What local names stand for: `self`, plain assignments from it and loops over its children."""
    names: dict[str, Route] = {own: ()}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, route = node.targets[0], _route(node.value, names)
        elif isinstance(node, ast.For):
            target, route = node.target, _route(node.iter, names)
            route = None if route is None else (*route, "*")
        else:
            continue
        if isinstance(target, ast.Name) and target.id != own and route:
            names[target.id] = route
    return names


def _use(node: ast.AST, names: dict[str, Route]) -> Iterator[Use]:
    if isinstance(node, ast.Attribute) and node.attr in _PARTS:
        route = _route(node.value, names)
        if route:
            yield route, f"its {node.attr} is read"
    if isinstance(node, ast.Call):
        route = _route(node.func, names)
        plain = len(node.args) <= 1 and all(k.arg == _KEYWORD for k in node.keywords)
        if route and not plain:
            yield route, "it is called with more than its input"


def _route(node: ast.AST, names: dict[str, Route]) -> Route | None:
    """The names from `self` to a node: ("a", "*", "b") for self.a[0].b; None for anything else."""
    route: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            route.append(node.attr)
        elif isinstance(node, ast.Subscript):
            route.append("*")
        else:
            return None
        node = node.value
    start = names.get(node.id)
    return None if start is None else (*start, *reversed(route))
