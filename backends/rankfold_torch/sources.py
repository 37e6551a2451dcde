"""Who reaches into a layer besides calling it: read off the source of the modules' methods.

Replacing `self.proj` breaks a parent whose forward reads `self.proj.weight`. Every method that
`forward` reaches through calls on `self` is parsed once per class; local names, loops and
comprehensions over children are followed. Each attribute path rooted at `self` that leads to a
layer and on to something its replacement does not have is reported, and so is asking for the class
of a layer or calling it with more than its input. What cannot be seen this way (a read in a helper
function, say) shows when the model is traced.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from rankfold_torch.layers import carried

_KEYWORD = "input"
_CHILDREN = frozenset({"children", "modules", "named_children", "named_modules"})
_SEQUENTIAL = frozenset(dir(nn.Sequential()))

Route = tuple[str, ...]
Names = dict[str, set[Route]]


@dataclass(frozen=True)
class _Use:
    """A use of what a route from `self` leads to: an attribute of it, or a remark."""

    route: Route
    attribute: str = ""
    remark: str = ""


_known: WeakKeyDictionary[type, tuple[_Use, ...]] = WeakKeyDictionary()


def reads_of(model: nn.Module) -> dict[int, str]:
    """By id of a module in the model, why a replacement would not do for its parents."""
    found: dict[int, str] = {}
    for module in model.modules():
        for use in _uses(type(module)):
            for reached in _follow(module, use.route):
                if use.attribute and _readable(reached, use.attribute):
                    continue
                what = use.remark or f"its {use.attribute} is read"
                found.setdefault(id(reached), f"{what} by {type(module).__name__}.forward")
    return found


def _readable(module: nn.Module, attribute: str) -> bool:
    """Whether the replacement of a layer has the attribute, too."""
    return attribute in _SEQUENTIAL or attribute in carried(module)


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


def _uses(cls: type) -> tuple[_Use, ...]:
    if cls not in _known:
        _known[cls] = tuple(dict.fromkeys(_parsed(cls)))
    return _known[cls]


def _parsed(cls: type) -> list[_Use]:
    """The uses of children in `forward` and in every method it calls on self."""
    pending, seen = ["forward"], {"forward"}
    uses: list[_Use] = []
    while pending:
        for function in _definitions(cls, pending.pop()):
            if not function.args.args:
                continue
            own = function.args.args[0].arg
            names = _names(function, own)
            for node in ast.walk(function):
                uses.extend(_uses_in(node, names))
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    name = node.attr
                    if node.value.id == own and name not in seen and hasattr(cls, name):
                        seen.add(name)
                        pending.append(name)
    return uses


def _definitions(cls: type, name: str) -> Iterator[ast.FunctionDef]:
    """The method of a class, and those of its bases as far as `super` leads."""
    for base in cls.__mro__:
        if base is nn.Module:
            return
        if name not in vars(base):
            continue
        function = _tree(vars(base)[name])
        if function is None:
            return
        yield function
        calls = (node for node in ast.walk(function) if isinstance(node, ast.Name))
        if not any(node.id == "super" for node in calls):
            return


def _tree(method: object) -> ast.FunctionDef | None:
    if isinstance(method, (staticmethod, classmethod)):
        method = method.__func__
    if isinstance(method, property):
        method = method.fget
    if not callable(method):
        return None
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method)))).body
    except (OSError, TypeError, SyntaxError):
        return None
    return body[0] if body and isinstance(body[0], ast.FunctionDef) else None


def _names(function: ast.FunctionDef, own: str) -> Names:
    """What local names stand for: `self`, assignments from it and loops over its children."""
    names: Names = {own: {()}}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, routes = node.targets[0], _routes(node.value, names)
        elif isinstance(node, ast.NamedExpr):
            target, routes = node.target, _routes(node.value, names)
        elif isinstance(node, (ast.For, ast.comprehension)):
            target, routes = node.target, _iterated(node.iter, names)
        else:
            continue
        for name in ast.walk(target):
            if isinstance(name, ast.Name) and name.id != own:
                names.setdefault(name.id, set()).update(routes - {()})
    return names


def _iterated(iterable: ast.AST, names: Names) -> set[Route]:
    """The routes to the items of whatever a loop goes over: zip, enumerate, values() and so on."""
    found: set[Route] = set()
    for node in ast.walk(iterable):
        for route in _routes(node, names):
            if route and route[-1] in _CHILDREN:
                found.add((*route[:-1], "*"))
            elif route:
                found.add((*route, "*"))
    return found


def _uses_in(node: ast.AST, names: Names) -> Iterator[_Use]:
    if isinstance(node, ast.Attribute):
        for route in _routes(node.value, names) - {()}:
            yield _Use(route, attribute=node.attr)
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "type") and node.args:
        for route in _routes(node.args[0], names) - {()}:
            yield _Use(route, remark="its class is asked for")
    plain = len(node.args) <= 1 and all(k.arg == _KEYWORD for k in node.keywords)
    for route in set() if plain else _routes(node.func, names) - {()}:
        yield _Use(route, remark="it is called with more than its input")


def _index(node: ast.AST) -> str:
    """The child that an index stands for: its name where that is written out, else any."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, str)):
        return str(node.value)
    return "*"


def _routes(node: ast.AST, names: Names) -> set[Route]:
    """The names from `self` to a node: ("a", "0", "b") for self.a[0].b; none for anything else."""
    route: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            route.append(node.attr)
        elif isinstance(node, ast.Subscript):
            route.append(_index(node.slice))
        else:
            return set()
        node = node.value
    return {(*start, *reversed(route)) for start in names.get(node.id, ())}
