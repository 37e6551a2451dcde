"""Finds plugins, checks them, and keeps a broken one from harming the others.

pluggy's own entry-point loader stops at the first plugin that raises, so the loop is ours: by name,
each through the stages import, api, register, check, declare. A plugin that fails a stage is
unregistered and recorded as a `Problem`.

`RANKFOLD_DISABLE_PLUGINS=a,b` leaves plugins out; `RANKFOLD_STRICT_PLUGINS=1` raises instead of
recording.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, distributions, entry_points
from types import ModuleType
from typing import Any

import pluggy

from rankfold.adapters.base import Adapter
from rankfold.adapters.tensor_rules import TensorRule
from rankfold.decompose.base import Decomposition
from rankfold.errors import RankfoldError
from rankfold.faults import is_users, shown, told
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.plugins import hookspecs
from rankfold.plugins.hookspecs import (
    PROJECT,
    AdapterSpec,
    LayerRule,
    ModelFolder,
    ParameterRule,
)
from rankfold.plugins.validation import Declarations, check_api, check_marked
from rankfold.policies.base import Policy
from rankfold.policies.from_text import policy_from_text
from rankfold.policies.selection import Selection


@dataclass(frozen=True)
class Problem:
    """A plugin's failure: the stage it happened in and the error."""

    plugin: str
    stage: str
    error: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} failed at {self.stage}: {self.error}"


@dataclass
class Registry:
    """Registry of everything that the plugins declare.

    Attributes:
        plugins: name of each plugin in use, to the distribution it comes from.
        declared: name of each plugin in use, to what it declares, in words.
        decompositions: by name.
        policies: by name.
        adapters: by name.
        rules: the layer rules of all plugins.
        parameter_rules: those for parameters.
        tensor_rules: those for checkpoints, by name.
        model_folders: kinds of folders that libraries open as models, by name.
        problems: what went wrong, in order.
    """

    strict: bool = False
    plugins: dict[str, str] = field(default_factory=dict)
    declared: dict[str, list[str]] = field(default_factory=dict)
    decompositions: dict[str, Decomposition] = field(default_factory=dict)
    policies: dict[str, type[Policy]] = field(default_factory=dict)
    adapters: dict[str, AdapterSpec] = field(default_factory=dict)
    rules: list[LayerRule] = field(default_factory=list)
    parameter_rules: list[ParameterRule] = field(default_factory=list)
    tensor_rules: dict[str, TensorRule] = field(default_factory=dict)
    model_folders: dict[str, ModelFolder] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._declared_rules: list[tuple[str, LayerRule | ParameterRule]] = []
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def load(self, entries: Iterable[EntryPoint], disabled: frozenset[str] = frozenset()) -> None:
        """Load plugins in the order of their names, rankfold's own first: theirs is the name."""
        # Sorted, so that which of two plugins keeps a name does not depend on the order of
        # installation.
        for entry in sorted(entries, key=lambda e: (_distribution(e) != PROJECT, e.name, e.value)):
            if entry.name in disabled:
                continue
            stage = "import"
            module: ModuleType | None = None
            try:
                # A plugin may do anything here, `sys.exit` included; what is caught is caught
                # below.
                module = entry.load()
                stage = "api"
                check_api(module)
                stage = "register"
                self._manager.register(module, name=entry.name)
                stage = "check"
                # Both ways: functions named as hooks that are not marked, and marked ones that are
                # no hooks.
                check_marked(module)
                self._manager.check_pending()
                stage = "declare"
                self._declare(entry.name, module)
            except BaseException as error:  # a plugin must not harm the others
                if is_users(error):
                    raise
                # Nothing of a plugin that failed stays registered: half of its hooks would be
                # called else.
                self._forget(entry.name, module)
                self._record(entry.name, stage, error)
            else:
                self.plugins[entry.name] = _distribution(entry)
        self._check_rules()

    def _check_rules(self) -> None:
        """Note rules for adapters that nobody declares; the plugins stay in use.

        The adapter's own plugin may not be installed, so this is no error where problems are.
        """
        for plugin, rule in self._declared_rules:
            if rule.adapter not in self.adapters:
                known = ", ".join(self.adapters) or "none"
                text = f"{rule.layer!r} is for an unknown adapter, {rule.adapter!r}; known: {known}"
                self.problems.append(Problem(plugin, "layer rules", text))
        self._declared_rules.clear()

    def policy(self, policy: Policy | str) -> Policy:
        """Return a policy that may be given as text.

        Raises:
            RankfoldError: see `policy_from_text`.
        """
        return policy_from_text(policy, self.policies) if isinstance(policy, str) else policy

    def selection(
        self,
        policy: Policy | str,
        include: str | Sequence[str] | None,
        exclude: str | Sequence[str],
        overrides: Mapping[str, Policy | str] | None,
    ) -> Selection:
        """Return the choice of layers and policies, of which some may be given as text.

        Raises:
            RankfoldError: see `policy_from_text` and `Selection`.
        """
        if isinstance(overrides, Mapping):
            overrides = {pattern: self.policy(item) for pattern, item in overrides.items()}
        return Selection(self.policy(policy), include, exclude, overrides)  # type: ignore[arg-type]

    def adapter(self, model: object) -> Adapter:
        """Return an adapter for a model; frameworks are looked up only where already imported.

        Raises:
            RankfoldError: no adapter knows the model; plugins with problems are named.
        """
        for spec in self.adapters.values():
            classes = map(imported, spec.model_types)
            if not any(isinstance(cls, type) and isinstance(model, cls) for cls in classes):
                continue
            try:
                # The first use of the framework's package. An adapter that cannot be imported is
                # passed over, as another one may know the model; if none does, the message below
                # names the reason.
                adapter: Adapter = resolve(spec.target)()
            except BaseException as error:
                if is_users(error):
                    raise
                self._record(spec.name, "adapter", error)
                continue
            return adapter
        known = ", ".join(
            f"{spec.name} ({', '.join(spec.model_types)})" for spec in self.adapters.values()
        )
        broken = "".join(f"; {problem}" for problem in self.problems)
        hint = "" if self.plugins else "; rankfold's entry points are missing: install the package"
        raise RankfoldError(
            f"no adapter for a model of type {type(model).__module__}.{type(model).__qualname__}; "
            f"known are {known or 'none'}{broken}{hint}"
        )

    def methods(self, names: Iterable[str]) -> dict[str, Decomposition]:
        """Return decompositions by name, in the order given.

        Raises:
            RankfoldError: an unknown name, or none at all.
        """
        chosen: dict[str, Decomposition] = {}
        for name in names:
            if name not in self.decompositions:
                known = ", ".join(sorted(self.decompositions)) or "none (no plugin is installed)"
                raise RankfoldError(
                    f"methods: {shown(name)} is unknown; use a tuple of some of {known}"
                )
            chosen[name] = self.decompositions[name]
        if not chosen:
            raise RankfoldError("methods: none given; name at least one")
        return chosen

    def layer_done(self, report: LayerPlan) -> None:
        """Tell every observer; one that raises is recorded and harms nobody else."""
        self._tell("layer_done", report=report)

    def model_done(self, model: Any, plan: Plan) -> None:
        """Tell every observer of a compressed model; a failure is recorded."""
        self._tell("model_done", model=model, plan=plan)

    def model_expanded(self, model: Any, plan: Plan) -> None:
        """Tell every observer of a model that is compressed no longer; a failure is recorded."""
        self._tell("model_expanded", model=model, plan=plan)

    def _tell(self, what: str, **arguments: object) -> None:
        hook = f"{PROJECT}_{what}"
        # One by one, since a hook call of pluggy ends at the first implementation that raises.
        for name in list(self.plugins):
            plugin = self._manager.get_plugin(name)
            try:
                if hasattr(plugin, hook):
                    self._call(hook, plugin, **arguments)
            except BaseException as error:
                if is_users(error):
                    raise
                self._record(name, what, error)

    def _call(self, hook: str, plugin: object, **arguments: object) -> list[Any]:
        others = [p for p in self._manager.get_plugins() if p is not plugin]
        caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
        results: list[Any] = caller(**arguments)
        return results

    def _declared(self, hook: str, plugin: object) -> list[Any]:
        return [item for items in self._call(hook, plugin) for item in items]

    def _declare(self, name: str, plugin: object) -> None:
        # All is checked before any of it is taken over, so that a plugin is in use in full or not
        # at all.
        new = Declarations.of(partial(self._declared, plugin=plugin))
        for what, ours, theirs in (
            ("decomposition", self.decompositions, new.decompositions),
            ("policy", self.policies, new.policies),
            ("adapter", self.adapters, new.adapters),
            ("tensor rule", self.tensor_rules, new.tensor_rules),
            ("model folder", self.model_folders, new.model_folders),
        ):
            for taken in ours.keys() & theirs.keys():
                raise ValueError(f"{what} {taken!r} is already registered")
        self.decompositions.update(new.decompositions)  # nothing can fail from here on
        self.policies.update(new.policies)
        self.adapters.update(new.adapters)
        self.rules.extend(new.rules)
        self._declared_rules += [(name, rule) for rule in new.rules]
        self._declared_rules += [(name, rule) for rule in new.parameter_rules]
        self.parameter_rules.extend(new.parameter_rules)
        self.tensor_rules.update(new.tensor_rules)
        self.model_folders.update(new.model_folders)
        self.declared[name] = new.words

    def _forget(self, name: str, module: ModuleType | None) -> None:
        """Unregister a module that failed, unless it is in use under that name already."""
        # Of two entry points of one name the second fails to register. Unregistering by that name
        # would take the first one, which works.
        if name not in self.plugins and self._manager.get_plugin(name) is module is not None:
            self._manager.unregister(name=name)

    def _record(self, plugin: str, stage: str, error: BaseException) -> None:
        problem = Problem(plugin, stage, told(error))
        if self.strict:
            raise RankfoldError(str(problem)) from error
        if problem not in self.problems:  # an adapter is tried again at every call
            self.problems.append(problem)


class Installed:
    """The registry of the installed plugins, made on first use by whichever thread comes first.

    A plugin that asks for it while it is loaded gets what there is so far, rankfold's own at least.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loading: Registry | None = None
        self._loaded: Registry | None = None

    def __call__(self) -> Registry:
        """Return the registry, after loading the plugins if this is the first call."""
        if self._loaded is not None:
            return self._loaded
        # A lock that one thread may take twice: a plugin that asks while it is loaded is called
        # from within `_load`, and gets the registry as far as it is.
        with self._lock:
            if self._loaded is None and self._loading is not None:
                return self._loading
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def cache_clear(self) -> None:
        """Forget the plugins, so that the next call loads them anew."""
        self._loaded = None

    def _load(self) -> Registry:
        strict = os.environ.get("RANKFOLD_STRICT_PLUGINS", "") not in ("", "0")
        names = os.environ.get("RANKFOLD_DISABLE_PLUGINS", "")
        disabled = frozenset(name.strip() for name in names.split(",") if name.strip())
        self._loading = Registry(strict=strict)
        try:
            self._loading.load(_entry_points(), disabled)
            return self._loading
        finally:
            self._loading = None


registry = Installed()


def resolve(target: str) -> Callable[..., Any]:
    """Return the object that "module:name" stands for, importing the module."""
    module, _, name = target.partition(":")
    resolved: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return resolved


def imported(target: str) -> object:
    """Return the object that "module:name" stands for; None if not imported yet or not there."""
    module, _, name = target.partition(":")
    try:
        # None has no such attribute either, so a module that is not imported needs no branch.
        return getattr(sys.modules.get(module), name, None)
    except BaseException as error:  # of a module that imports its parts when they are asked for
        if is_users(error):
            raise
        return None


def _entry_points() -> Iterable[EntryPoint]:
    try:
        return entry_points(group=PROJECT)
    except Exception:  # one distribution with a damaged list hides those of all others
        return dict.fromkeys(_readable_entry_points())


def _readable_entry_points() -> Iterator[EntryPoint]:
    for distribution in distributions():
        with suppress(Exception):  # and is no plugin
            yield from distribution.entry_points.select(group=PROJECT)


def _distribution(entry: EntryPoint) -> str:
    try:
        name = None if entry.dist is None else entry.dist.name
    except Exception:  # what is left of a distribution that was removed by hand has no name
        return entry.value
    return name or entry.value
