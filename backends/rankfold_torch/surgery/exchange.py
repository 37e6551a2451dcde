"""Modules exchanged by identity, wherever a model's modules hold them in a way that can be changed.

Modules, dicts, lists and dataclasses are changed themselves. What cannot be changed (a tuple, a
set, a partial) is made anew where it holds such a module. What else may hold one is left as it is:
whether it does is for `rankfold_torch.surgery.stale_layers` to find out.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

from torch import nn

from rankfold.state.transaction import Changes


def exchange(model: nn.Module, new: Mapping[int, nn.Module], changes: Changes) -> None:
    """Prepare the changes after which a model holds other modules.

    Args:
        model: the model, which is not one of those exchanged.
        new: by id of a module, what comes in its place.
        changes: to be made afterwards.
    """
    _Exchange(new, changes).of(model)


class _Exchange:
    def __init__(self, new: Mapping[int, nn.Module], changes: Changes) -> None:
        self._new = new
        self._changes = changes
        self._known: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """Return what is to be held in place of a value: often that value."""
        # Nothing is changed during this walk: `Changes` collects all assignments, which are made
        # together afterwards and taken back together if an interrupt comes between two of them.
        if id(value) in self._new:
            return self._new[id(value)]
        if id(value) not in self._known:
            self._known[id(value)] = value  # what holds itself is met again
            self._known[id(value)] = self._within(value)
        return self._known[id(value)]

    def _within(self, value: Any) -> Any:
        kind = type(value)  # not `isinstance`, which asks the object: it may be a proxy of nothing
        if issubclass(kind, (nn.Module, SimpleNamespace)):
            self._entries(vars(value))
        elif issubclass(kind, dict):
            self._entries(value)
        elif issubclass(kind, (list, deque)):
            for index, item in enumerate(value):
                # `of` remembers its outcome, so asking twice is cheap.
                if self.of(item) is not item:
                    self._changes.item(value, index, self.of(item))
        elif issubclass(kind, (tuple, set, frozenset)):
            return self._anew(value)
        # Exactly that class: a subclass may be built in another way.
        elif kind is functools.partial:
            return self._partial(value)
        elif is_dataclass(kind):
            for name in (field.name for field in fields(kind) if hasattr(value, field.name)):
                item = getattr(value, name)
                if self.of(item) is not item:
                    self._changes.attribute(value, name, self.of(item))
        return value

    def _entries(self, entries: dict[Any, Any]) -> None:
        for key, item in entries.items():
            if self.of(item) is not item:
                self._changes.item(entries, key, self.of(item))

    def _anew(self, value: Any) -> Any:
        items = [self.of(item) for item in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        # A named tuple takes its fields one by one.
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)

    def _partial(self, value: functools.partial[Any]) -> functools.partial[Any]:
        function, args = self.of(value.func), self.of(value.args)
        options = {name: self.of(item) for name, item in value.keywords.items()}
        same = all(options[name] is item for name, item in value.keywords.items())
        if function is value.func and args is value.args and same:
            return value
        changed = functools.partial(function, *args, **options)
        # A partial has a `__dict__` for attributes that others put on it.
        vars(changed).update(vars(value))
        return changed
