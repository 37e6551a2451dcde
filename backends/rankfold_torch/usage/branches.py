"""Branches of a method that a module can take, by conditions on constants of the module.

`if self.tp > 1:` holds or does not hold for as long as the attribute is what it is, which is for
good where no method of the class sets it after construction. Anything else stays open: what depends
on the inputs, the device, the mode or the compiler may turn out otherwise in another run.
"""

from __future__ import annotations

import ast
import dis
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

Conditions = tuple["Condition", ...]
OPEN = object()
"""Value that may be otherwise in another run."""
LEFT_OUT = object()
"""Value that a caller may pass, and has not to: the run that is watched speaks for it."""
# Attributes that calls of PyTorch change without a method of the class: `train`, `to`, `cuda`.
_CHANGING = frozenset({"training", "device", "dtype", "is_cuda", "requires_grad"})
# Types whose truth and comparisons run no code of others.
_PLAIN = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset, type(None))
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_DEPTH = 8
"""Expressions within each other that are evaluated."""


@dataclass(frozen=True, eq=False)
class Scope:
    """Meaning of the names in a function.

    Attributes:
        self_name: the name of the module, `self`; None in a static method.
        optional: the parameters that have a default value.
        assigned: what is assigned to local names; None where it cannot be told.
    """

    self_name: str | None
    optional: frozenset[str] = frozenset()
    assigned: Mapping[str, Sequence[ast.expr | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """Condition with the outcome that a branch needs; a test of None cannot be decided.

    Attributes:
        test: the expression.
        holds: whether it is true in the branch.
        scope: of the function that it stands in.
    """

    test: ast.expr | None
    holds: bool
    scope: Scope

    def of(self, module: nn.Module) -> object:
        """Return True or False as a module meets it or not, else `OPEN` or `LEFT_OUT`."""
        if self.test is None:
            return OPEN
        truth = _truth(_value(self.test, module, self.scope))
        return truth is self.holds if isinstance(truth, bool) else truth


def reachable(branch: Conditions, module: nn.Module) -> bool:
    """True if a module can come to a branch."""
    return all(condition.of(module) is not False for condition in branch)


def settled(branch: Conditions, module: nn.Module) -> bool:
    """True if one run shows whether a module comes to a branch that it can come to."""
    # The first condition that is not decided tells: what stands before it is the same in every run.
    outcomes = (condition.of(module) for condition in branch)
    return next((truth for truth in outcomes if not isinstance(truth, bool)), True) is not OPEN


def _truth(value: object) -> object:
    if value is OPEN or value is LEFT_OUT:
        return value
    # The truth of a tensor or of an object of the model's own class may depend on anything.
    return bool(value) if isinstance(value, _PLAIN) else OPEN


def _value(node: ast.expr, module: nn.Module, scope: Scope, depth: int = 0) -> Any:
    """Return the value of an expression for a module, as far as it is a constant of it."""
    # Local names may be assigned in terms of each other.
    if depth > _DEPTH:
        return OPEN
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return _name(node.id, module, scope, depth)
    if isinstance(node, ast.Attribute):
        return _attribute(_value(node.value, module, scope, depth + 1), node.attr)
    if isinstance(node, ast.BoolOp):
        return _combined(node, module, scope, depth)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        truth = _truth(_value(node.operand, module, scope, depth + 1))
        return not truth if isinstance(truth, bool) else truth
    if isinstance(node, ast.Compare):
        return _compared(node, module, scope, depth)
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        items = [_value(item, module, scope, depth + 1) for item in node.elts]
        return next((x for x in items if x is OPEN or x is LEFT_OUT), _displayed(node, items))
    if isinstance(node, ast.Call):
        return _called(node, module, scope, depth)
    return OPEN


def _displayed(node: ast.Tuple | ast.List | ast.Set, items: list[Any]) -> Any:
    # Of the kind that is written: a list is equal to no tuple.
    if isinstance(node, ast.List):
        return items
    try:
        return tuple(items) if isinstance(node, ast.Tuple) else set(items)
    except TypeError:  # what no set can hold
        return OPEN


def _name(name: str, module: nn.Module, scope: Scope, depth: int) -> Any:
    if name == scope.self_name:
        return module
    values = scope.assigned.get(name, ())
    # With one assignment the name has that value wherever it is used; with several, any of them.
    if len(values) == 1 and values[0] is not None and name not in scope.optional:
        return _value(values[0], module, scope, depth + 1)
    return LEFT_OUT if name in scope.optional and not values else OPEN


def _attribute(owner: Any, name: str) -> Any:
    """Return an attribute as it lies there, without running properties."""
    if owner is OPEN or owner is LEFT_OUT:
        return owner
    if name in _CHANGING:
        return OPEN
    if isinstance(owner, nn.Module):
        if name in _set_later(type(owner)):
            return OPEN
    # Methods of strings, dicts and the like.
    elif isinstance(owner, _PLAIN):
        return OPEN
    # Registries, the instance, then its classes: the order in which PyTorch's modules look up.
    for members in _members(owner):
        if name in members:
            value = members[name]
            return OPEN if inspect.isroutine(value) or isinstance(value, property) else value
    return OPEN


def _members(owner: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the dictionaries in which attributes of an object lie, those of its classes last."""
    if isinstance(owner, nn.Module):
        yield from (owner._parameters, owner._buffers, owner._modules)
    yield getattr(owner, "__dict__", {})
    yield from (vars(kind) for kind in type(owner).__mro__)


def _combined(node: ast.BoolOp, module: nn.Module, scope: Scope, depth: int) -> Any:
    decisive = isinstance(node.op, ast.Or)
    # One `False` decides an `and` even where others are open.
    truths = [_truth(_value(value, module, scope, depth + 1)) for value in node.values]
    if any(truth is decisive for truth in truths):
        return decisive
    for state in (OPEN, LEFT_OUT):
        if any(truth is state for truth in truths):
            return state
    return not decisive


def _compared(node: ast.Compare, module: nn.Module, scope: Scope, depth: int) -> Any:
    values = [_value(side, module, scope, depth + 1) for side in (node.left, *node.comparators)]
    for state in (OPEN, LEFT_OUT):
        if any(value is state for value in values):
            return state
    for compare, left, right in zip(node.ops, values, values[1:], strict=False):
        identity = isinstance(compare, (ast.Is, ast.IsNot))
        if not identity and not (isinstance(left, _PLAIN) and isinstance(right, _PLAIN)):
            return OPEN
        try:
            if not _COMPARISONS[type(compare)](left, right):
                return False
        except TypeError:
            return OPEN
    return True


def _called(node: ast.Call, module: nn.Module, scope: Scope, depth: int) -> Any:
    """Return the value of a call of `hasattr`, `getattr`, `len` or `bool`; `OPEN` for others."""
    if not isinstance(node.func, ast.Name) or node.keywords or not node.args:
        return OPEN
    first, *others = (_value(argument, module, scope, depth + 1) for argument in node.args)
    if first is OPEN or first is LEFT_OUT:
        return first
    name = node.func.id
    if name == "bool":
        return _truth(first)
    if name == "len" and isinstance(first, (tuple, list, dict, nn.ModuleList, nn.ModuleDict)):
        return len(first)
    if name in ("hasattr", "getattr") and others and isinstance(others[0], str):
        if isinstance(first, nn.Module) and others[0] in _set_later(type(first)):
            return OPEN  # it may be there by the next run
        known = any(others[0] in members for members in _members(first))
        if name == "hasattr":
            return known
        return _attribute(first, others[0]) if known else others[-1]
    return OPEN


_set: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def _set_later(kind: type) -> frozenset[str]:
    """Return the names of attributes that methods of a class set, but for its `__init__`."""
    if kind not in _set:
        _set[kind] = frozenset(_stored_names(kind))
    return _set[kind]


def _stored_names(kind: type) -> Iterator[str]:
    # Bases up to nn.Module, whose own writes are to attributes of `_CHANGING` and registries.
    for base in kind.__mro__:
        if base is nn.Module:
            break
        for name, member in vars(base).items():
            # Properties and class methods have their function inside.
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            code = getattr(function, "__code__", None)
            if name != "__init__" and isinstance(code, CodeType):
                for step in dis.get_instructions(code):
                    # By name alone, on whatever object: bytecode does not tell `self.a = x` from
                    # `other.a = x`.
                    if step.opname == "STORE_ATTR":
                        yield step.argval
