"""What modules keep on themselves while a model runs, so that runs side by side do not share it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

from rankfold.state.restoration import Restored
from rankfold_torch.paired_run.attribute_writes import WRITES
from rankfold_torch.temporary_changes import ABSENT, put

_OWN = frozenset(vars(nn.Module())) | {"forward"}
Place: TypeAlias = tuple[int, str]


class PerRunState:
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

        def noticed(module: nn.Module, name: str, value: Any) -> None:
            key = id(module), name
            known = key in self._first or name in _OWN
            if not known and id(module) in self._own:
                self._first[key] = module, vars(module).get(name, ABSENT)

        with Restored(self._forget), WRITES.by(noticed):
            yield

    @contextmanager
    def of(self, run: Hashable) -> Iterator[None]:
        """Inside, the attributes are as a run left them; afterwards as they were at first."""
        first = {key: value for key, (_, value) in self._first.items()}
        self._set({**first, **self._values.get(run, {})})
        try:
            yield
        finally:
            self._values[run] = {
                key: vars(module).get(key[1], ABSENT) for key, (module, _) in self._first.items()
            }
            self._forget()

    def _forget(self) -> None:
        """The attributes as they were at first."""
        self._set({key: value for key, (_, value) in self._first.items()})

    def _set(self, values: dict[Place, Any]) -> None:
        targets = [(vars(self._first[key][0]), key[1]) for key in values]
        put(targets, list(values.values()))
