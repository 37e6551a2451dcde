"""A search of the object graph for objects that should be gone.

A model may hold a layer in ways that no registry of modules knows: in the cell of a closure, a
default argument, a partial, a bound method, a hook, a weak reference, a generator or any object's
attribute. The garbage collector knows what refers to what, so the search asks it. Classes, modules
of Python and the globals of functions are not entered, as through them everything leads to
everything: of a class, its containers and what its methods hold or name is looked at.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextvars import ContextVar
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np

# A frame leads to every variable of a caller, the search's own among them; code and texts lead
# nowhere.
_NOT_ENTERED = (type, ModuleType, CodeType, FrameType, str, bytes, int, float, complex)
_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
_CONTAINERS = (list, dict, set, tuple, ContextVar)


def reached(
    starts: Iterable[tuple[str, object]],
    targets: Collection[int],
    *,
    known: Iterable[int] = (),
    leaves: tuple[type, ...] = (),
    identity: Callable[[object], int] = id,
    framework: tuple[str, ...] = (),
) -> dict[int, str]:
    """Find which objects can be got to from others.

    Args:
        starts: objects to start from, each with a word for it.
        targets: the objects to look for, by identity; they are not entered.
        known: objects that are not entered, by id.
        leaves: types whose instances are not entered.
        identity: what two objects that stand for the same have in common.
        framework: as for `held_by`.

    Returns:
        By identity of each target that was reached, the word for the first start that leads to it.
    """
    seen = set(known)
    kept: list[object] = []  # objects made on the way, whose ids must not be used again
    words: dict[int, str] = {}
    not_entered = (*_NOT_ENTERED, *leaves)
    for word, start in starts:
        # A stack of its own, not recursion: linked lists and deep models would exceed Python's
        # limit.
        stack = [start]
        while stack:
            item = stack.pop()
            # Targets are neither entered nor marked as seen: `setdefault` keeps the first start
            # that leads there.
            if identity(item) in targets:
                words.setdefault(identity(item), word)
                continue
            if id(item) in seen or issubclass(type(item), not_entered):
                continue
            seen.add(id(item))
            kept.append(item)
            stack.extend(_contents(item))
            if id(type(item)) not in seen:
                seen.add(id(type(item)))
                stack.extend(value for _, value in held_by(type(item), framework))
    return words


def held_by(cls: type, framework: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """Yield what a class and its bases hold, each with a word for it.

    That is containers among the attributes of the class, its methods that hold anything by closure,
    and containers and context variables that its methods name among the globals.

    Args:
        cls: the class.
        framework: prefixes of modules whose classes and functions are left out: they may know an
            object (as the key of a cache) without calling it.
    """
    # `typing` caches what generic classes were subscripted with, of the whole process.
    left_out = ("typing", *framework)
    for base in cls.__mro__:
        ours = not (base.__module__ or "").startswith(("builtins", *left_out))
        # A list, since another thread may add attributes to a class meanwhile.
        for name, value in list(vars(base).items()):
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            elif isinstance(value, property):
                value = value.fget
            if not isinstance(value, FunctionType):
                if ours and type(value) in _CONTAINERS and not name.startswith("__"):
                    yield f"the class attribute {base.__name__}.{name}", value
            elif not (value.__module__ or "").startswith(left_out):
                if value.__closure__:
                    yield f"the method {value.__qualname__}", value
                if name != "__init__":  # which may fill a register that nothing computes with
                    yield from _named_globals(value)


def _named_globals(function: FunctionType) -> Iterator[tuple[str, object]]:
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if type(value) in _CONTAINERS and not name.startswith("__"):
            yield f"{name}, which {function.__qualname__} names", value


def _contents(item: Any) -> Iterable[object]:
    kind = type(item)  # not `isinstance`, which asks the object and may run code of it
    # `gc.get_referents` of a function gives its globals, too, through which everything is reached.
    if issubclass(kind, FunctionType):
        return (*(item.__closure__ or ()), item.__defaults__, item.__kwdefaults__, vars(item))
    # The collector does not follow weak references, but whoever holds one may call the object.
    # Called by the base class, since a subclass may define `__call__`.
    if issubclass(kind, weakref.ReferenceType):
        return (weakref.ReferenceType.__call__(item),)
    if issubclass(kind, _PROXIES):
        return _behind(item)
    if issubclass(kind, ContextVar):
        return (item.get(None),)
    if issubclass(kind, np.ndarray):  # which the collector does not know to hold objects
        return item.ravel().tolist() if item.dtype.hasobject else ()
    return gc.get_referents(item)


def _behind(proxy: Any) -> Iterable[object]:
    try:
        # A proxy hands on attributes, and so the bound method is that of the object behind it.
        return (proxy.__repr__.__self__,)
    except ReferenceError:  # what it stood for is gone
        return ()
