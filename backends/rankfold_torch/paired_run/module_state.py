"""Attributes that modules set while a model runs, kept apart for runs side by side."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

from rankfold.state.restoration import Restored
from rankfold_torch.model_state import FRAMEWORK
from rankfold_torch.offloading import offloaded, offloading
from rankfold_torch.paired_run.attribute_writes import WRITES
from rankfold_torch.temporary_changes import ABSENT, put

_USUAL = FRAMEWORK | {"forward"}  # which the driver itself exchanges
Key: TypeAlias = tuple[int, str]


class PerRunState:
    """Attributes that several runs of a model set on its modules, apart for each run.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        # Watchers see the writes of all threads, to modules of other models, too.
        self._modules = {id(module) for module in model.modules()}
        self._first: dict[Key, tuple[nn.Module, Any]] = {}
        # What a hook of accelerate brings for a call it takes away at its end, in whatever run:
        # between the two, other runs enter and leave the same module.
        for module in model.modules():
            hook = offloading(module)
            for owner, name, _ in () if hook is None else offloaded(module, hook):
                self._first[id(owner), name] = owner, _home(owner, name)[name]
        self._values: dict[Hashable, dict[Key, Any]] = {}

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Notice inside which attributes are set."""

        def noticed(module: nn.Module, name: str, value: Any) -> None:
            key = id(module), name
            # This runs for every attribute that any module of the process sets: cheap tests come
            # first.
            seen = key in self._first or name in _USUAL
            if not seen and id(module) in self._modules:
                # The module is kept beside its id, so that the id cannot be used again. The watcher
                # is told before the write, so this is still the value of before.
                self._first[key] = module, _home(module, name).get(name, ABSENT)

        with Restored(self._forget), WRITES.by(noticed):
            yield

    @contextmanager
    def of(self, run: Hashable) -> Iterator[None]:
        """Put the attributes inside as a run left them, and afterwards as they were at first."""
        # A module may keep a cache, a counter or its last output on itself. Two interleaved runs
        # of one module would read each other's. So whatever `__setattr__` is seen to set gets a
        # value for each run, and the value before the first write for a run that has not set it.
        first = {key: value for key, (_, value) in self._first.items()}
        self._set({**first, **self._values.get(run, {})})
        try:
            yield
        finally:
            self._values[run] = {
                key: _home(module, key[1]).get(key[1], ABSENT)
                for key, (module, _) in self._first.items()
            }
            self._forget()

    def _forget(self) -> None:
        """Put the attributes as they were at first."""
        self._set({key: value for key, (_, value) in self._first.items()})

    def _set(self, values: dict[Key, Any]) -> None:
        places = [(_home(self._first[key][0], key[1]), key[1]) for key in values]
        put(places, list(values.values()))


def _home(module: nn.Module, name: str) -> dict[str, Any]:
    """Return the dictionary that an attribute lies in: a cache may be a registered buffer."""
    registries = (module._parameters, module._buffers)
    return next((known for known in registries if name in known), vars(module))
