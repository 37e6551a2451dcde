"""What modules keep on themselves while a model runs, so that runs side by side do not share it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

_ABSENT = object()
_OWN = frozenset(vars(nn.Module())) | {"forward"}
Place: TypeAlias = tuple[int, str]


class Remembered:
    """The attributes that several runs of a model set on its modules, apart for each run.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._own = {id(module) for module in model.modules()}
        self._first: dict[Place, tuple[nn.Module, Any]] = {}
        self._values: dict[Hashable, dict[Place, Any]] = {}

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Inside, it is noticed which attributes are set."""
        original = nn.Module.__setattr__

        def noticed(module: nn.Module, name: str, value: Any) -> None:
            place = id(module), name
            known = place in self._first or name in _OWN
            if not known and id(module) in self._own:
                self._first[place] = module, vars(module).get(name, _ABSENT)
            original(module, name, value)

        nn.Module.__setattr__ = noticed  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            nn.Module.__setattr__ = original  # type: ignore[method-assign]

    @contextmanager
    def of(self, run: Hashable) -> Iterator[None]:
        """Inside, the attributes are as a run left them; afterwards as they were at first."""
        first = {place: value for place, (_, value) in self._first.items()}
        self._set({**first, **self._values.get(run, {})})
        try:
            yield
        finally:
            self._values[run] = {
                place: vars(module).get(place[1], _ABSENT)
                for place, (module, _) in self._first.items()
            }
            self._set({place: value for place, (_, value) in self._first.items()})

    def _set(self, values: dict[Place, Any]) -> None:
        for place, value in values.items():
            own = vars(self._first[place][0])
            if value is _ABSENT:
                own.pop(place[1], None)
            else:
                own[place[1]] = value
