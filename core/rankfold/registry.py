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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from rankfold import hookspecs
from rankfold.contracts import Adapter, Decomposition, Policy, TensorRule
from rankfold.errors import RankfoldError
from rankfold.hookspecs import API, PROJECT, AdapterSpec, LayerRule, ParameterRule
from rankfold.output_layers import judged
from rankfold.plan import LayerPlan


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
    """Everything the plugins declare.

    Attributes:
        plugins: name of each plugin in use, to the distribution it comes from.
        declared: name of each plugin in use, to what it declares, in words.
        decompositions: by name.
        policies: by name.
        adapters: by name.
        rules: the layer rules of all plugins.
        parameter_rules: those for parameters.
        tensor_rules: those for checkpoints, by name.
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
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._declared_rules: list[tuple[str, LayerRule | ParameterRule]] = []
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def load(self, found: Iterable[EntryPoint], disabled: frozenset[str] = frozenset()) -> None:
        """Loads plugins in the order of their names, rankfold's own first: theirs is the name."""
        for entry in sorted(found, key=lambda e: (_distribution(e) != PROJECT, e.name, e.value)):
            if entry.name in disabled:
                continue
            stage = "import"
            module: ModuleType | None = None
            try:
                module = entry.load()
                stage = "api"
                _check_api(module)
                stage = "register"
                self._manager.register(module, name=entry.name)
                stage = "check"
                _check_marked(module)
                self._manager.check_pending()
                stage = "declare"
                self._declare(entry.name, module)
            except (Exception, SystemExit) as error:  # a plugin must not harm the others
                if module is not None and self._manager.get_plugin(entry.name) is module:
                    self._manager.unregister(name=entry.name)
                self._record(entry.name, stage, error)
            else:
                self.plugins[entry.name] = _distribution(entry)
        self._check_rules()

    def _check_rules(self) -> None:
        """Notes rules for adapters that nobody declares; the plugins stay in use.

        The adapter's own plugin may not be installed, so this is no error where problems are.
        """
        for plugin, rule in self._declared_rules:
            if rule.adapter not in self.adapters:
                known = ", ".join(self.adapters) or "none"
                text = f"{rule.layer!r} is for an unknown adapter, {rule.adapter!r}; known: {known}"
                self.problems.append(Problem(plugin, "layer rules", text))
        self._declared_rules.clear()

    def adapter(self, model: object) -> Adapter:
        """The adapter for a model; frameworks are looked up only where already imported.

        Raises:
            RankfoldError: no adapter knows the model; plugins with problems are named.
        """
        for spec in self.adapters.values():
            if not any(isinstance(model, cls) for cls in _imported(spec.model_types)):
                continue
            try:
                made: Adapter = resolve(spec.target)()
            except Exception as error:
                self._record(spec.name, "adapter", error)
                continue
            return made
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
        """Decompositions by name, in the order given.

        Raises:
            RankfoldError: an unknown name, or none at all.
        """
        chosen: dict[str, Decomposition] = {}
        for name in names:
            if name not in self.decompositions:
                raise RankfoldError(
                    f"methods: {name!r} is unknown; use some of "
                    f"{', '.join(sorted(self.decompositions)) or 'none (no plugin is installed)'}"
                )
            chosen[name] = self.decompositions[name]
        if not chosen:
            raise RankfoldError("methods: none given; name at least one")
        return chosen

    def layer_done(self, report: LayerPlan) -> None:
        """Tells every observer; one that raises is recorded and harms nobody else."""
        for name in list(self.plugins):
            plugin = self._manager.get_plugin(name)
            if not hasattr(plugin, "rankfold_layer_done"):
                continue
            try:
                self._call("rankfold_layer_done", plugin, report=report)
            except Exception as error:
                self._record(name, "layer_done", error)

    def _call(self, hook: str, plugin: object, **arguments: object) -> list[Any]:
        others = [p for p in self._manager.get_plugins() if p is not plugin]
        caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
        results: list[Any] = caller(**arguments)
        return results

    def _declared(self, hook: str, plugin: object) -> list[Any]:
        return [item for items in self._call(hook, plugin) for item in items]

    def _declare(self, name: str, plugin: object) -> None:
        decompositions = self._declared("rankfold_decompositions", plugin)
        policies = self._declared("rankfold_policies", plugin)
        adapters = self._declared("rankfold_adapters", plugin)
        declared = self._declared("rankfold_layer_rules", plugin)
        rules = [rule for rule in declared if isinstance(rule, LayerRule)]
        parameter_rules = [rule for rule in declared if isinstance(rule, ParameterRule)]
        tensor_rules = [r for r in declared if not isinstance(r, (LayerRule, ParameterRule))]
        for method in decompositions:
            for part in ("refuse", "max_ranks", "modes", "ranks", "template", "decompose"):
                if not callable(getattr(method, part, None)):
                    raise TypeError(f"decomposition {method!r} has no method {part!r}")
        for policy in policies:
            for part in ("allocate", "from_text"):
                if not callable(getattr(policy, part, None)):
                    raise TypeError(f"policy {policy!r} has no method {part!r}")
            judged(policy)
        _check_type(adapters, AdapterSpec)
        for rule in tensor_rules:
            for part in ("recognise", "op", "stages"):
                if not callable(getattr(rule, part, None)):
                    raise TypeError(
                        f"{rule!r} is neither a LayerRule nor a ParameterRule nor has it a method "
                        f"{part!r}"
                    )
        for spec in adapters:
            readers = (reader for _, reader in spec.readers)
            _check_targets(spec, (*spec.model_types, spec.target, *readers))
        for rule in rules:
            _check_targets(
                rule, (rule.layer, rule.read, *(() if rule.build is None else (rule.build,)))
            )
        for parameters in parameter_rules:
            _check_targets(parameters, (parameters.layer,))
            if not isinstance(parameters.names, tuple) or not all(parameters.names):
                raise TypeError(f"{parameters!r}: give its names as a tuple")
        _check_new("decomposition", decompositions, self.decompositions)
        _check_new("policy", policies, self.policies)
        _check_new("adapter", adapters, self.adapters)
        _check_new("tensor rule", tensor_rules, self.tensor_rules)
        self.decompositions.update({method.name: method for method in decompositions})
        self.policies.update({policy.name: policy for policy in policies})
        self.adapters.update({spec.name: spec for spec in adapters})
        self.rules.extend(rules)
        self.parameter_rules.extend(parameter_rules)
        self._declared_rules += [(name, rule) for rule in rules]
        self._declared_rules += [(name, rule) for rule in parameter_rules]
        self.tensor_rules.update({rule.name: rule for rule in tensor_rules})
        self.declared[name] = [
            *(f"decomposition {method.name}" for method in decompositions),
            *(f"policy {policy.name}" for policy in policies),
            *(f"adapter {spec.name}" for spec in adapters),
            *(f"layer rule {rule.layer}" for rule in rules),
            *(f"parameter rule {rule.layer}" for rule in parameter_rules),
            *(f"tensor rule {rule.name}" for rule in tensor_rules),
        ]

    def _record(self, plugin: str, stage: str, error: BaseException) -> None:
        if self.strict:
            raise RankfoldError(f"plugin {plugin!r} failed at {stage}: {error!r}") from error
        text = f"{type(error).__name__}: {error}"
        self.problems.append(Problem(plugin, stage, text))


@cache
def registry() -> Registry:
    """The registry of the installed plugins, made on first use."""
    made = Registry(strict=os.environ.get("RANKFOLD_STRICT_PLUGINS", "") not in ("", "0"))
    names = os.environ.get("RANKFOLD_DISABLE_PLUGINS", "")
    disabled = frozenset(name.strip() for name in names.split(",") if name.strip())
    made.load(entry_points(group=PROJECT), disabled)
    return made


def resolve(target: str) -> Callable[..., Any]:
    """The object that "module:name" stands for, importing the module."""
    module, _, name = target.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _imported(targets: Iterable[str]) -> list[type]:
    classes = []
    for target in targets:
        module, _, name = target.partition(":")
        if module in sys.modules:
            cls = getattr(sys.modules[module], name, None)
            if isinstance(cls, type):
                classes.append(cls)
    return classes


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _check_marked(module: ModuleType) -> None:
    for name, value in vars(module).items():
        hook = name.startswith(f"{PROJECT}_") and callable(value)
        if hook and not hasattr(value, f"{PROJECT}_impl"):
            raise TypeError(f"function {name!r} is not marked with rankfold.hookspecs.hookimpl")


def _check_api(module: ModuleType) -> None:
    stated = getattr(module, "RANKFOLD_API", None)
    if not (isinstance(stated, tuple) and len(stated) == 2):
        raise TypeError(f"RANKFOLD_API is {stated!r}; state it as {API}")
    if stated[0] != API[0] or stated[1] > API[1]:
        raise TypeError(f"RANKFOLD_API is {stated}; this rankfold offers {API}")


def _check_type(items: Iterable[object], cls: type) -> None:
    for item in items:
        if not isinstance(item, cls):
            raise TypeError(f"{item!r} is not a {cls.__name__}")


def _check_targets(item: object, targets: Iterable[object]) -> None:
    for target in targets:
        if not (isinstance(target, str) and all(target.partition(":"))):
            raise TypeError(f"{item!r}: {target!r} is not of the form 'module:name'")


def _check_new(what: str, items: Iterable[Any], known: Iterable[str]) -> None:
    names = list(known)
    for item in items:
        if not isinstance(getattr(item, "name", None), str) or not item.name:
            raise TypeError(f"{what} {item!r} has no name")
        if item.name in names:
            raise ValueError(f"{what} {item.name!r} is already registered")
        names.append(item.name)
