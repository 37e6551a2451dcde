"""Search of the source of modules' methods for code that reaches into a layer.

Replacing `self.proj` breaks a parent whose forward computes with `self.proj.weight`. Every method
that `forward` reaches through calls on `self` is read once per class, and so is every other method
that computes something, a loss or a step of training: what it does with a layer is told by routes
from `self` (see `references`), where the module can come to it (see `branches`). What cannot be
seen this way (a read in a helper function, say) shows when the model is traced.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import CodeType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from rankfold_torch.layers.low_rank_sequential import CONSTANTS, NEW, PLAIN, TENSORS, VIEWS, carried
from rankfold_torch.torch_internals import forward_hooks
from rankfold_torch.usage.branches import Condition, Conditions, reachable, settled
from rankfold_torch.usage.names import ANY, BELOW, BULK, Route
from rankfold_torch.usage.references import Function, Reference, references

# What a replacement answers, too: everything that an `nn.Sequential` has.
_SEQUENTIAL = frozenset(dir(nn.Sequential()))
_ITEMS = (ANY, "values", "items", "keys", "copy")
_NOT_COMPUTING = (
    "init",
    "reset",
    "load",
    "set_",
    "from_",
    "save",
    "export",
    "tie",
    "untie",
    "resize",
    "prune",
    "freeze",
    "unfreeze",
    "fuse",
    "merge",
    "unmerge",
    "reparam",
    "switch_to_deploy",
    "get_equivalent",
    "convert",
    "quantize",
    "configure_optim",
    "extra_repr",
)
"""Beginnings of the names of methods that make, fill, change or describe a model. They are called
before or after it is compressed: what they find then is the compressed model."""
_INITIALISING = re.compile(r"(^|_)(re)?init(iali[sz]e\w*)?(_|$)")  # `fix_init_weight`
# Modules of PyTorch reach into their children in ways that are known and dealt with in the
# refusals.
_LIBRARIES = ("torch.", "rankfold_torch.")
_TELLING = frozenset(
    (*TENSORS, "parameters", "named_parameters", "state_dict", "_parameters", "get_parameter")
)
_NAMING = ("__class__", "_get_name")
"""Attributes of a module that tell its class, as `type` does."""


@dataclass(frozen=True)
class _Use:
    """Use that a method makes of what a route from its module leads to."""

    reference: Reference
    method: str
    running: bool
    """True if forward comes to it."""


# Classes that are made on the fly (by parametrize, in notebooks) are not kept alive by this.
_known: WeakKeyDictionary[type, dict[frozenset[str], tuple[_Use, ...]]] = WeakKeyDictionary()


def reads_of(model: nn.Module, *, traced: bool = False) -> dict[int, str]:
    """Return by id of a module in the model why a replacement would not do for its parents.

    Args:
        model: the model.
        traced: whether a run of it has been watched, which shows what forward reads.
    """
    reasons: dict[int, str] = {}
    # Methods besides forward by which other modules run a module. Modules come from the outermost
    # inwards, as calls go.
    called: dict[int, set[str]] = {}
    for module in model.modules():
        further = frozenset(called.get(id(module), ()))
        for use in (*_uses(type(module), further), *_uses_of_hooks(module)):
            for reached, rest in _follow(module, use.reference.route):
                by_name = use.running and reached is not module and len(rest) == 1
                if by_name and isinstance(getattr(type(reached), rest[0], None), FunctionType):
                    called.setdefault(id(reached), set()).add(rest[0])
                what = None if reached is module else _harm(reached, rest, use, module, traced)
                if what is not None:
                    where = f"{type(module).__name__}.{use.method}"
                    # The first reason is kept: one is enough, and modules come from the outermost
                    # inwards.
                    reasons.setdefault(id(reached), f"{what} by {where}")
    return reasons


def _harm(layer: nn.Module, rest: Route, use: _Use, module: nn.Module, traced: bool) -> str | None:
    """Return what a use of a layer would come to grief on in a replacement; None for nothing."""
    manner, branch = use.reference.manner, use.reference.branch
    # A run shows reads of weights by operation, more exactly than source does. So after a trace the
    # source decides only where that run does not speak for every other one.
    seen = traced and use.running
    what: str | None = None
    if not rest:
        if manner == "asked" and use.running:
            # No operation shows this, so a run cannot refute it.
            what, seen = "its class is asked for", False
        elif manner == "extended" and use.running:
            what = "it is called with more than its input"
    elif rest[0] in (*TENSORS, BULK):
        if _computes(rest, use):
            name = "weight" if rest[0] == BULK else rest[0]
            what = f"its {name} is {'set' if manner == 'set' else 'read'}"
        elif use.running and rest[-1] == "__class__":
            what = f"the class of its {rest[0]} is asked for"
    # Any other attribute counts in what forward does alone: elsewhere one that is missing is an
    # error, not a wrong result.
    elif use.running:
        seen = False
        if rest[0] in _NAMING:
            what = "its class is asked for"
        elif manner == "set":
            any_of_them = rest[0] == "__dict__"
            if (any_of_them or rest[0] in CONSTANTS) and not rest[1:]:
                what = f"its {'attributes are' if any_of_them else f'{rest[0]} is'} set"
        elif hasattr(layer, rest[0]) and rest[0] not in _SEQUENTIAL | carried(layer).keys():
            what = f"its {rest[0]} is read"
    if what is None or not reachable(branch, module):
        return None
    return None if seen and settled(branch, module) else what


def _computes(rest: Route, use: _Use) -> bool:
    """True if a use depends on the values of a weight: not on what it is like, nor fills it."""
    name, *tail = rest
    bulk = name == BULK
    # `parameters()` gives the tensors themselves or pairs, and `state_dict()` a mapping; what comes
    # after the item is what is done with a tensor.
    while bulk and tail and tail[0] in _ITEMS:
        tail = tail[1:]
    # `weight.data.dtype` and `weight.T.shape` tell what the weight is like, too.
    while tail[1:] and tail[0] in VIEWS:
        tail = tail[1:]
    if tail and (tail[0] in PLAIN | NEW or (bulk and tail[0] == "grad")):
        return False
    manner = use.reference.manner
    # `weight.copy_`, `weight.normal_`: names that end in one underscore work in place.
    if manner in ("set", "written") or (tail and re.fullmatch(r".*[^_]_", tail[-1])):
        return use.running
    if manner in ("seen", "asked", "bound"):
        return False
    # A list of all parameters, as for an optimizer, reads no values.
    if manner == "kept":
        return use.running and (not bulk or bool(tail))
    return not bulk or bool(tail) or manner == "used"


def _follow(module: nn.Module, route: Route) -> Iterator[tuple[nn.Module, Route]]:
    """Yield the modules that a route leads to, each with the rest of the route."""
    if not route:
        yield module, ()
        return
    name, *others = route
    rest = tuple(others)
    if name == BULK:
        for below in module.modules():
            yield below, route
    elif name == BELOW:
        for below in module.modules():
            yield from _follow(below, rest)
    elif name == ANY:
        for child in module.children():
            yield from _follow(child, rest)
    # A name that is no child (yet) may be a property or a plain attribute: what it is read as is
    # the rest of the route, of this module.
    elif module._modules.get(name) is not None:
        yield from _follow(module.get_submodule(name), rest)
    else:
        yield module, route


def _uses(cls: type, further: frozenset[str]) -> tuple[_Use, ...]:
    known = _known.setdefault(cls, {})
    if further not in known:
        entries = sorted({"forward", *(name for name in further if _is_own(cls, name))})
        uses = (*_of_running(cls, entries), *_of_other_methods(cls, entries))
        known[further] = tuple(dict.fromkeys(uses))
    return known[further]


def _of_running(cls: type, entries: Sequence[str]) -> Iterator[_Use]:
    """Yield the uses in methods that are run, and in all that these come to by way of `self`."""
    known: dict[str, list[Reference]] = {}
    reached: dict[str, list[set[Condition]]] = {}
    pending: list[tuple[str, str, Conditions]] = [(name, name, ()) for name in entries]
    while pending:
        entry, name, before = pending.pop()
        # Come to before under no more conditions: what it does is known already. Methods that call
        # each other end here, too, as a class has finitely many conditions.
        if any(conditions <= set(before) for conditions in reached.setdefault(name, [])):
            continue
        reached[name].append(set(before))
        if name not in known:
            known[name] = [use for method in _definitions(cls, name) for use in _references(method)]
        for reference in known[name]:
            branch = (*before, *reference.branch)
            yield _Use(replace(reference, branch=branch), entry, running=True)
            if hasattr(cls, reference.route[0]):
                pending.append((entry, reference.route[0], branch))


def _of_other_methods(cls: type, entries: Sequence[str]) -> Iterator[_Use]:
    """Yield the uses in methods that those do not come to: a loss, a step of training."""
    # A first search by the words in bytecode, which needs no source and no parsing. Only methods
    # that mention a weight somehow are parsed.
    methods = {name: list(_definitions(cls, name)) for name in dir(cls) if _is_own(cls, name)}
    codes = {name: [c for m in overloads if (c := _code(m))] for name, overloads in methods.items()}
    # By name, without conditions: more methods than `_of_running` follows, and those are left to
    # it.
    running = _called(codes, entries)
    public = [name for name in methods if not name.startswith("_") and name not in running]
    for name in _called(codes, public) - running:
        for method, code in zip(methods[name], codes[name], strict=False):
            if _TELLING & _words(code):
                for reference in _references(method):
                    yield _Use(reference, name, running=False)


def _is_own(cls: type, name: str) -> bool:
    """True if a method is of the model and is called while it is trained or used."""
    word = name.lstrip("_")
    if _INITIALISING.search(word):
        return False
    # Overridden methods of nn.Module (`train`, `_apply`, `state_dict`) are about modules as such.
    if name != "forward" and (hasattr(nn.Module, name) or word.startswith(_NOT_COMPUTING)):
        return False
    return not cls.__module__.startswith(_LIBRARIES)


def _called(codes: Mapping[str, Sequence[CodeType]], names: Iterable[str]) -> set[str]:
    """Return the names of some methods and of those that they mention, at any depth."""
    pending, reached_names = list(names), set[str]()
    while pending:
        name = pending.pop()
        if name in codes and name not in reached_names:
            reached_names.add(name)
            pending.extend(word for code in codes[name] for word in _words(code))
    return reached_names


def _words(code: CodeType) -> set[str]:
    """Return the names and texts in the code of a function, nested functions included."""
    words = {*code.co_names, *(text for text in code.co_consts if isinstance(text, str))}
    # Nested functions, lambdas and comprehensions are constants of the code around them.
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return words.union(*map(_words, inner))


def _uses_of_hooks(module: nn.Module) -> Iterator[_Use]:
    """Yield the uses in forward hooks and pre-hooks, whose first argument is the module."""
    for hook in forward_hooks(module):
        # Objects with `__call__` and partials have no source of their own to read.
        if isinstance(hook, FunctionType):
            for reference in _references(hook):
                yield _Use(reference, f"forward, in the hook {hook.__name__}", running=True)


def _definitions(cls: type, name: str) -> Iterator[Any]:
    """Yield the method of a class, and those of its bases as far as `super` leads."""
    for base in cls.__mro__:
        if base is nn.Module:
            return
        if name in vars(base):
            method = vars(base)[name]
            yield method
            code = _code(method)
            # An override that does not call `super` hides the methods of the bases.
            if code is None or "super" not in _words(code):
                return


def _plain(method: object) -> object:
    """Return the function of a method, which may be a property or wrapped in decorators."""
    if isinstance(method, (staticmethod, classmethod)):
        method = method.__func__
    if isinstance(method, property):
        method = method.fget
    return inspect.unwrap(method) if callable(method) else None


def _code(method: object) -> CodeType | None:
    return getattr(_plain(method), "__code__", None)


def _references(method: object) -> list[Reference]:
    """Return what a method, a property or a function does by way of its first argument."""
    tree = _tree(_plain(method))
    if tree is None or isinstance(method, (staticmethod, classmethod)):
        return []
    names = [*tree.args.posonlyargs, *tree.args.args]
    return references(tree, names[0].arg) if names else []


def _tree(function: Any) -> Function | None:
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    try:
        # Source that is not there (a notebook cell gone, exec, C) or a fragment that does not parse
        # alone tells nothing; a traced run still does.
        body = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError):
        return None
    if body and isinstance(body[0], (ast.FunctionDef, ast.AsyncFunctionDef)):
        return body[0]
    # `getsource` of a lambda gives the whole statement it stands in, maybe with other lambdas. The
    # one with the same parameters is taken.
    parameters = list(code.co_varnames[: code.co_argcount])
    for node in (inner for statement in body for inner in ast.walk(statement)):
        if isinstance(node, ast.Lambda) and [a.arg for a in node.args.args] == parameters:
            return node
    return None
