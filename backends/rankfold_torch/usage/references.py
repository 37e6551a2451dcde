"""Reading of a function's source for the uses of what its names lead to.

Of each route (see `routes`) the *manner* is told in which what it leads to is used, and the branch
of the function in which that happens.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rankfold_torch.layers.low_rank_sequential import LIKE
from rankfold_torch.usage.branches import Condition, Conditions, Scope
from rankfold_torch.usage.names import (
    BULK,
    Bindings,
    Names,
    Route,
    index_of,
    joined,
    last_name,
    of_call,
    routes,
)

Manner: TypeAlias = Literal[
    "used",  # in an operation or as an argument
    "called",
    "extended",  # called with more than an input
    "written",  # handed to a function that works in place
    "set",
    "asked",  # for its class
    "kept",  # put away, under another name, in a container or by an object
    "bound",  # to a local name, whose uses are told
    "returned",
    "iterated",
    "seen",  # compared to None, printed and the like
]
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
# Functions that do not compute with the values: `x.to(weight)` takes a dtype and a device.
_SEEING = ("len", "id", "print", "repr", "str", "hasattr", "callable", "bool", "to", "type_as")
_KEEPING = ("append", "extend", "update", "add", "insert", "setdefault", "list", "tuple", "set")
_FILLING = ("update", "setdefault", "__setitem__", "__ior__")
_FUNCTIONAL = ("functional_call", "stack_module_state")
_KEYWORD = "input"


@dataclass(frozen=True)
class Reference:
    """Use of what a route leads to, in one place of a function."""

    route: Route
    manner: Manner
    branch: Conditions


def references(function: Function, self_name: str | None) -> list[Reference]:
    """Return all references by way of a name in a function, nested functions included."""
    names: Names = {} if self_name is None else {self_name: frozenset({()})}
    reader = _Reader(self_name, function, names)
    reader.read(function)
    return list(dict.fromkeys(reader.collected))


def _ends(block: list[ast.stmt]) -> bool:
    """True if nothing after a block is reached by way of it."""
    return bool(block) and isinstance(block[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))


class _Reader:
    """Walks over a function; `collected` fills on the way."""

    def __init__(self, self_name: str | None, function: Function, names: Names) -> None:
        self.collected: list[Reference] = []
        self._self_name = self_name
        self._bindings = Bindings(self_name, names)
        optional = frozenset(_optional(function.args))
        self._scope = Scope(self_name, optional, self._bindings.assigned)

    def read(self, function: Function, branch: Conditions = ()) -> None:
        """Read the body of the function."""
        if isinstance(function, ast.Lambda):
            self._expression(function.body, "returned", branch)
            return
        for _ in range(2):  # a name may be bound after it is used, in a loop
            self._bindings.assigned.clear()
            for statement in function.body:
                self._bindings.read(statement)
        self._block(function.body, branch)

    def _nested(self, function: Function, branch: Conditions) -> None:
        arguments = function.args
        all_of_them = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        # A parameter of the nested function hides the name of the outer one. Other names are those
        # of the enclosing scope as they are at its end, wherever the nested function is called.
        hidden = {a.arg for a in (*all_of_them, arguments.vararg, arguments.kwarg) if a}
        names = {
            name: routes_of_value
            for name, routes_of_value in self._bindings.names.items()
            if name not in hidden
        }
        reader = _Reader(self._self_name if self._self_name in names else None, function, names)
        reader.read(function, branch)
        self.collected.extend(reader.collected)

    def _block(self, block: list[ast.stmt], branch: Conditions) -> None:
        for statement in block:
            self._statement(statement, branch)
            if isinstance(statement, ast.If):
                # `if c: return` puts all that follows under `not c`, as an else would.
                if _ends(statement.body):
                    branch = self._if(branch, statement.test, holds=False)
                elif _ends(statement.orelse):
                    branch = self._if(branch, statement.test, holds=True)

    def _if(self, branch: Conditions, test: ast.expr | None, *, holds: bool) -> Conditions:
        return (*branch, Condition(test, holds, self._scope))

    def _statement(self, node: ast.stmt, branch: Conditions) -> None:
        if isinstance(node, (ast.If, ast.While)):
            self._expression(node.test, "seen", branch)
            self._block(node.body, self._if(branch, node.test, holds=True))
            self._block(node.orelse, self._if(branch, node.test, holds=False))
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            self._expression(node.iter, "iterated", branch)
            self._block([*node.body, *node.orelse], branch)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                self._expression(item.context_expr, "used", branch)
            self._block(node.body, branch)
        elif isinstance(node, (ast.Try, ast.TryStar)):
            # The body may run to its end; a handler runs on an error alone, which no condition
            # tells. Its test of None leaves it open.
            self._block([*node.body, *node.orelse, *node.finalbody], branch)
            for handler in node.handlers:
                self._block(handler.body, self._if(branch, None, holds=True))
        elif isinstance(node, ast.Match):
            patterns = (part for case in node.cases for part in ast.walk(case.pattern))
            asked = any(isinstance(part, ast.MatchClass) for part in patterns)
            self._expression(node.subject, "asked" if asked else "seen", branch)
            for case in node.cases:
                within = self._if(branch, None, holds=True)
                if case.guard is not None:
                    self._expression(case.guard, "seen", within)
                self._block(case.body, within)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._nested(node, branch)
        elif isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                self._target(target, branch)
            if node.value is not None:
                # A local name is followed by its routes. Whatever else is assigned to (an
                # attribute, an item) keeps the value out of sight.
                local = all(isinstance(t, (ast.Name, ast.Tuple, ast.List)) for t in targets)
                manner: Manner = "bound" if local else "kept"
                if isinstance(node, ast.AugAssign):
                    manner = "used"
                self._expression(node.value, manner, branch)
        elif isinstance(node, (ast.Return, ast.Expr)):
            if node.value is not None:
                manner = "returned" if isinstance(node, ast.Return) else "seen"
                self._expression(node.value, manner, branch)
        # Classes within functions are not read: their methods have names of their own.
        elif not isinstance(node, ast.ClassDef):
            self._children(node, "seen", branch)

    def _target(self, node: ast.expr, branch: Conditions) -> None:
        if isinstance(node, (ast.Tuple, ast.List)):
            for part in node.elts:
                self._target(part, branch)
        elif isinstance(node, ast.Starred):
            self._target(node.value, branch)
        elif not isinstance(node, ast.Name):
            # Binding a local name sets nothing; an attribute or an item does.
            self._emit(routes(node, self._bindings.names), "set", branch)
            self._inside(node, branch)

    def _expression(self, node: ast.expr, manner: Manner, branch: Conditions) -> None:
        """Read an expression whose value is used in some manner."""
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
            self._emit(routes(node, self._bindings.names), manner, branch)
            self._inside(node, branch)
        elif isinstance(node, ast.Call):
            self._call(node, manner, branch)
        elif isinstance(node, ast.IfExp):
            self._expression(node.test, "seen", branch)
            self._expression(node.body, manner, self._if(branch, node.test, holds=True))
            self._expression(node.orelse, manner, self._if(branch, node.test, holds=False))
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                self._expression(value, manner, branch)
                # `a and b` comes to b only where a holds, `a or b` only where it does not.
                branch = self._if(branch, value, holds=isinstance(node.op, ast.And))
        elif isinstance(node, ast.Compare):
            # `weight is None` asks for no values; `weight > 0` computes with them.
            alike = all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops)
            for side in (node.left, *node.comparators):
                self._expression(side, "seen" if alike else "used", branch)
        elif isinstance(node, ast.Lambda):
            self._nested(node, branch)
        elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            for generator in node.generators:
                self._expression(generator.iter, "iterated", branch)
                for test in generator.ifs:
                    self._expression(test, "seen", branch)
                    branch = self._if(branch, test, holds=True)
            values = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            for value in values:
                self._expression(value, "kept", branch)
        elif isinstance(node, (ast.NamedExpr, ast.Starred, ast.Await, ast.Tuple, ast.List)):
            self._children(node, manner, branch)
        elif isinstance(node, ast.JoinedStr):
            self._children(node, "seen", branch)
        else:
            self._children(node, "used", branch)

    def _call(self, node: ast.Call, manner: Manner, branch: Conditions) -> None:
        name, plain = last_name(node.func), isinstance(node.func, ast.Name)
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        # A call with a route of its own (`self.parameters()`, `getattr(self, "a")`) is used in the
        # manner in which the call is; its first argument is the owner of the route already.
        called = of_call(node, self._bindings.names)
        if called:
            self._emit(called, manner, branch)
            arguments = arguments[1:] if plain else arguments
        elif name in ("setattr", "__setattr__") and len(node.args) > 2:
            owners = routes(node.args[0], self._bindings.names)
            self._emit(joined(owners, index_of(node.args[1])), "set", branch)
            arguments = node.args[2:]
        elif name in _FUNCTIONAL and node.args:
            first = node.args[0]
            models = first.elts if isinstance(first, (ast.List, ast.Tuple)) else [first]
            for model in models:
                self._emit(joined(routes(model, self._bindings.names), BULK), "used", branch)
            arguments = arguments[1:]
        elif plain and name in ("isinstance", "issubclass", "type") and node.args:
            asked = routes(node.args[0], self._bindings.names)
            self._emit(joined(asked, "__class__") if name == "type" else asked, "asked", branch)
            self._inside(node.args[0], branch)
            arguments = []
        else:
            # A layer takes one positional input, or `input=`.
            several = len(node.args) > 1 or any(k.arg != _KEYWORD for k in node.keywords)
            self._emit(
                routes(node.func, self._bindings.names), "extended" if several else "called", branch
            )
            if name in _FILLING and isinstance(node.func, ast.Attribute):
                owners = routes(node.func.value, self._bindings.names)
                attributes = [route for route in owners if route[-1:] == ("__dict__",)]
                self._emit(attributes, "set", branch)
        for argument in arguments:
            self._expression(argument, _handed(name), branch)
        self._inside(node.func, branch)

    def _inside(self, node: ast.expr, branch: Conditions) -> None:
        """Read what stands inside a route: the calls and indices on the way."""
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            if isinstance(node, ast.Subscript):
                self._expression(node.slice, "used", branch)
            node = node.value
        if isinstance(node, ast.Call):
            if of_call(node, self._bindings.names):
                for argument in node.args:
                    self._inside(argument, branch)
                self._inside(node.func, branch)
            else:
                self._call(node, "used", branch)
        elif not isinstance(node, ast.Name):
            self._expression(node, "used", branch)

    def _children(self, node: ast.AST, manner: Manner, branch: Conditions) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._expression(child, manner, branch)
            elif isinstance(child, (ast.keyword, ast.FormattedValue, ast.Slice)):
                self._children(child, manner, branch)

    def _emit(self, routes_of_value: Iterable[Route], manner: Manner, branch: Conditions) -> None:
        self.collected.extend(
            Reference(route, manner, branch) for route in routes_of_value if route
        )


def _handed(function: str) -> Manner:
    """Return the manner in which a function uses its arguments, as its name has it."""
    # PyTorch's names for functions that work in place: `nn.init.normal_`, `clip_grad_norm_`.
    if function.endswith("_") and not function.endswith("__"):
        return "written"
    if function in (*_SEEING, *LIKE):
        return "seen"
    # A class, whose instance may keep what it is given.
    constructs = function[:1].isupper()
    return "kept" if constructs or function in _KEEPING else "used"


def _optional(arguments: ast.arguments) -> Iterator[str]:
    """Yield the parameters that have a default value."""
    # Defaults belong to the last of the positional parameters.
    positional = [*arguments.posonlyargs, *arguments.args]
    for argument in positional[len(positional) - len(arguments.defaults) :]:
        yield argument.arg
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            yield argument.arg
