"""Routes from a name in a function to something else, and the local names that stand for them.

A *route* is such a path: ("a", "0", "weight") is `self.a[0].weight`, whether it is written so, by a
local name, in a loop, by `getattr` or by `get_parameter`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import TypeAlias

Route: TypeAlias = tuple[str, ...]
Names: TypeAlias = dict[str, frozenset[Route]]

ANY = "*"
"""Part of a route: any child, or item."""
BELOW = "**"
"""Part of a route: a module and all that are below it."""
BULK = "()"
"""Part of a route: the parameters and buffers of a module and of all that are below it."""
# What the methods add to the route of their owner. Children and items are reached by iterating,
# which adds `ANY`, so `children()` itself adds nothing.
_GIVING = {
    **dict.fromkeys(("parameters", "named_parameters", "state_dict", "buffers"), (BULK,)),
    **dict.fromkeys(("modules", "named_modules"), (BELOW,)),
    **dict.fromkeys(("children", "named_children", "values", "items"), ()),
}
_NAMED = ("named_parameters", "named_children", "named_modules", "items")
_BY_NAME = ("get_parameter", "get_submodule", "get_buffer")
# Functions whose result holds the items of their argument.
_SAME = ("list", "tuple", "set", "dict", "reversed", "sorted", "iter")
_WRITTEN_OUT = (ast.Tuple, ast.List, ast.Set)
_PLACES = ("__dict__", "_parameters", "_modules", "_buffers")


def routes(node: ast.AST, names: Names) -> frozenset[Route]:
    """Return the routes to an expression; none where it does not begin at a known name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, frozenset())
    if isinstance(node, ast.Attribute):
        return joined(routes(node.value, names), node.attr)
    if isinstance(node, ast.Subscript):
        index = index_of(node.slice)
        # A loop over `zip(...)` with one target binds each position of it: `pair[1]` has a route of
        # its own.
        if isinstance(node.value, ast.Name) and _position(node.value.id, index) in names:
            return names[_position(node.value.id, index)]
        return joined(routes(node.value, names), index)
    if isinstance(node, (ast.NamedExpr, ast.Starred, ast.Await)):
        return routes(node.value, names)
    if isinstance(node, ast.IfExp):
        return routes(node.body, names) | routes(node.orelse, names)
    if isinstance(node, ast.BoolOp):
        # `a or b` is one of the two. Routes are an overestimate: a route too many costs a layer a
        # refusal, one too few its correctness.
        return frozenset[Route]().union(*(routes(value, names) for value in node.values))
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
        # What holds all items of something is followed as that is.
        item = node.value if isinstance(node, ast.DictComp) else node.elt
        return frozenset(route[:-1] for route in routes(item, names) if route[-1:] == (ANY,))
    return of_call(node, names) if isinstance(node, ast.Call) else frozenset()


def of_call(call: ast.Call, names: Names) -> frozenset[Route]:
    """Return the routes to what well-known functions give."""
    name = last_name(call.func)
    if isinstance(call.func, ast.Attribute):
        owners = routes(call.func.value, names)
        if name in _GIVING:
            return joined(owners, *_GIVING[name])
        if name in _BY_NAME and call.args:
            argument = call.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                return joined(owners, *argument.value.split("."))
            # A computed name may be that of any of them, at any depth.
            return joined(owners, *((BELOW,) if name == "get_submodule" else (BULK, ANY)))
    elif name == "getattr" and len(call.args) > 1:
        return joined(routes(call.args[0], names), index_of(call.args[1]))
    elif name == "vars" and call.args:
        return joined(routes(call.args[0], names), "__dict__")
    elif name == "next" and call.args:
        return items(routes(call.args[0], names))
    elif name in _SAME and call.args:
        return routes(call.args[0], names)
    return frozenset()


def joined(owners: Iterable[Route], *parts: str) -> frozenset[Route]:
    """Return routes that go on. What an object keeps in its `__dict__` are attributes of it."""
    further = set()
    for owner in owners:
        route = owner
        for part in parts:
            # `self.__dict__["_modules"]["a"]` is `self.a`: the last step through a registry is
            # taken out again, and a second registry takes the place of the first.
            if route and route[-1] in _PLACES:
                route = (*route[:-1], *(() if part in _PLACES else (part,)))
                if part in _PLACES:
                    route = (*route, part)
            # To iterate over `modules()` gives what `BELOW` says already.
            elif route and route[-1] == BELOW and part == ANY:
                continue
            else:
                route = (*route, part)
        further.add(route)
    return frozenset(further)


def items(collections: Iterable[Route]) -> frozenset[Route]:
    """Return the routes to what collections hold."""
    return joined(collections, ANY)


def items_of(node: ast.expr, names: Names) -> frozenset[Route]:
    """Return the routes to the items of an expression, which may be written out."""
    if not isinstance(node, _WRITTEN_OUT):
        return items(routes(node, names))
    return frozenset[Route]().union(
        *(
            items_of(part.value, names) if isinstance(part, ast.Starred) else routes(part, names)
            for part in node.elts
        )
    )


def index_of(node: ast.AST) -> str:
    """Return the child that an index stands for: its name where that is written out, else any."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, str)):
        return str(node.value)
    return ANY


def last_name(node: ast.AST) -> str:
    """Return the name that an expression ends with: of `a.b.c`, c."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _position(name: str, index: object) -> str:
    """Return the key among names for one item of a tuple that a name is bound to."""
    return f"{name}[{index}]"


class Bindings:
    """Routes that the local names of a function stand for, in any order in which it is run.

    Args:
        self_name: the name of the module; it is not bound to anything else.
        names: what names stand for where the function begins.

    Attributes:
        names: the routes of every name.
        assigned: the expressions of every local name; None where it is bound to no expression.
    """

    def __init__(self, self_name: str | None, names: Names) -> None:
        self._self_name = self_name
        self.names = dict(names)
        self.assigned: dict[str, list[ast.expr | None]] = {}

    def read(self, node: ast.AST) -> None:
        """Bind the names of a statement, but for those of nested functions."""
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            return
        for child in ast.iter_child_nodes(node):
            self.read(child)
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, node.value)
        elif isinstance(node, (ast.NamedExpr, ast.AnnAssign)) and node.value is not None:
            self._bind(node.target, node.value)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._bind_items(node.target, node.iter)
        elif isinstance(node, ast.AugAssign):
            self._bind_to(node.target, frozenset())
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._bind_to(node.optional_vars, frozenset())

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.assigned.setdefault(target.id, []).append(value)
            # A name keeps the routes of all assignments: branches and loops may run in any order.
            self._add(target.id, routes(value, self.names))
        elif isinstance(target, (ast.Tuple, ast.List)):
            if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts):
                for part, item in zip(target.elts, value.elts, strict=True):
                    self._bind(part, item)
            elif isinstance(value, ast.Name) and any(
                _position(value.id, index) in self.names for index in range(len(target.elts))
            ):
                for index, part in enumerate(target.elts):
                    self._bind_to(part, self.names.get(_position(value.id, index), frozenset()))
            else:
                # Unpacked from something that is no written tuple: any item of it.
                self._bind_to(target, routes(value, self.names))

    def _bind_to(self, target: ast.expr, meanings: frozenset[Route]) -> None:
        """Bind to what is not written out; the items of it, for several names."""
        if isinstance(target, ast.Name):
            self.assigned.setdefault(target.id, []).append(None)
            self._add(target.id, meanings)
        elif isinstance(target, ast.Starred):
            self._bind_to(target.value, meanings)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                # What is starred is a list of the items, and is followed as the whole is.
                starred = isinstance(part, ast.Starred)
                self._bind_to(part, meanings if starred else items(meanings))

    def _bind_items(self, target: ast.expr, iterable: ast.expr) -> None:
        """Bind the target of a loop; what runs side by side is told apart by its position."""
        if isinstance(iterable, _WRITTEN_OUT):
            for part in iterable.elts:
                if isinstance(part, ast.Starred):
                    self._bind_items(target, part.value)
                else:
                    self._bind(target, part)
            return
        several = isinstance(target, (ast.Tuple, ast.List)) and isinstance(iterable, ast.Call)
        name = last_name(iterable.func) if isinstance(iterable, ast.Call) else ""
        if several and name in ("zip", "enumerate", *_NAMED):
            assert isinstance(target, (ast.Tuple, ast.List))
            assert isinstance(iterable, ast.Call)
            sources: list[ast.expr | None] = list(iterable.args)
            if name == "enumerate":
                sources = [None, *iterable.args[:1]]
            elif name in _NAMED:
                self._bind_to(target.elts[0], frozenset())
                for part in target.elts[1:]:
                    self._bind_to(part, items(of_call(iterable, self.names)))
                return
            for part, source in zip(target.elts, sources, strict=False):
                if source is None:
                    self._bind_to(part, frozenset())
                else:
                    self._bind_items(part, source)
            return
        if name in ("zip", "enumerate") and isinstance(iterable, ast.Call):
            if isinstance(target, ast.Name):  # a tuple, of which every item leads elsewhere
                # Position 0 of `enumerate` is a number.
                first = 1 if name == "enumerate" else 0
                self._bind_to(target, frozenset())
                for index, argument in enumerate(iterable.args, start=first):
                    key = _position(target.id, index)
                    further = items_of(argument, self.names)
                    self.names[key] = self.names.get(key, frozenset()) | further
            return
        if name in ("state_dict", "keys"):  # gives names
            self._bind_to(target, frozenset())
            return
        self._bind_to(target, items(routes(iterable, self.names)))

    def _add(self, name: str, meanings: frozenset[Route]) -> None:
        if name != self._self_name:
            self.names[name] = self.names.get(name, frozenset()) | meanings
