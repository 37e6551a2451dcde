"""What modules keep on themselves while a model runs, so that runs side by side do not share it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_ABSENT = object()
_OWN = frozenset(vars(nn.Module())) | {"forward"}


class Remembered:
    """Values of the attributes that a run of a model sets on its modules.

    Args:
        places: the modules and the names of their attributes.
    """

    def __init__(self, places: dict[tuple[int, str], nn.Module]) -> None:
        self._places = places
        self._values = self._found()

    @contextmanager
    def present(self) -> Iterator[None]:
        """Inside, the attributes are those of the run; afterwards those from before."""
        outside = self._found()
        self._set(self._values)
        try:
            yield
        finally:
            self._values = self._found()
            self._set(outside)

    def _found(self) -> list[Any]:
        return [vars(m).get(name, _ABSENT) for (_, name), m in self._places.items()]

    def _set(self, values: list[Any]) -> None:
        for ((_, name), module), value in zip(self._places.items(), values, strict=True):
            if value is _ABSENT:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = value


@contextmanager
def noticing(places: dict[tuple[int, str], nn.Module]) -> Iterator[None]:
    """Inside, modules and attributes that are set on them are put into `places`."""
    original = nn.Module.__setattr__

    def noticed(module: nn.Module, name: str, value: Any) -> None:
        if name not in _OWN:
            places[id(module), name] = module
        original(module, name, value)

    nn.Module.__setattr__ = noticed  # type: ignore[method-assign,assignment]  # restored below
    try:
        yield
    finally:
        nn.Module.__setattr__ = original  # type: ignore[method-assign]
