"""The declarations of one plugin, checked before any of it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from rankfold.adapters.tensor_rules import TensorRule
from rankfold.decompose.base import Decomposition
from rankfold.faults import shown
from rankfold.plugins.hookspecs import (
    API,
    PROJECT,
    AdapterSpec,
    LayerRule,
    ModelFolder,
    ParameterRule,
)
from rankfold.policies.base import Policy
from rankfold.policies.validation import check_scope

# Methods without which nothing works, by name, so that the error says which one is missing.
_DECOMPOSITION = ("refuse", "max_ranks", "modes", "ranks", "template", "decompose")
_POLICY = ("allocate", "from_text")
_TENSOR_RULE = ("recognise", "op", "stages")
# Attributes that name functions.
_FOLDER = ("save", "beside", "conversions", "refusals", "names")


@dataclass(frozen=True)
class Declarations:
    """Declarations of one plugin, by name where they have one; each hook is called only once."""

    decompositions: dict[str, Decomposition]
    policies: dict[str, type[Policy]]
    adapters: dict[str, AdapterSpec]
    rules: list[LayerRule]
    parameter_rules: list[ParameterRule]
    tensor_rules: dict[str, TensorRule]
    model_folders: dict[str, ModelFolder]

    @classmethod
    def of(cls, hook: Callable[[str], Iterable[Any]]) -> Declarations:
        """Collect and check declarations.

        Args:
            hook: calls the hook of that name of the plugin.

        Raises:
            TypeError: something is not what it is declared to be.
            ValueError: a name is given twice.
            RankfoldError: a policy judges what it cannot.
        """
        # A hook may be a generator: it runs now, within the stage that its errors are recorded
        # under, and what it gives is the same for the check and for the use.
        adapters = list(hook("rankfold_adapters"))
        decompositions = list(hook("rankfold_decompositions"))
        policies = list(hook("rankfold_policies"))
        folders = list(hook("rankfold_model_folders"))
        declared = list(hook("rankfold_layer_rules"))
        rules = [rule for rule in declared if isinstance(rule, LayerRule)]
        parameter_rules = [rule for rule in declared if isinstance(rule, ParameterRule)]
        others = [rule for rule in declared if not isinstance(rule, (LayerRule, ParameterRule))]
        _check_parts("decomposition", decompositions, _DECOMPOSITION)
        for decomposition in decompositions:
            multilinear = getattr(decomposition, "multilinear_costs", False)
            if not isinstance(multilinear, bool):
                raise TypeError(
                    f"decomposition {shown(decomposition)}: multilinear_costs is "
                    f"{shown(multilinear)}; give a bool"
                )
            if not isinstance(getattr(decomposition, "interpolates", ""), str):
                raise TypeError(
                    f"decomposition {shown(decomposition)}: interpolates is no text; give the name "
                    "of a method"
                )
        _check_parts("policy", policies, _POLICY)
        for policy in policies:
            check_scope(policy)
        _check_parts("layer, parameter or tensor rule", others, _TENSOR_RULE)
        _check_adapters(adapters)
        _check_folders(folders)
        for rule in rules:
            build = () if rule.build is None else (rule.build,)
            _check_targets(rule, (rule.layer, rule.read, *build))
            if not isinstance(rule.folds, str):
                raise TypeError(f"{shown(rule)}: say in words what it folds")
        for parameters in parameter_rules:
            _check_targets(parameters, (parameters.layer,))
            if not isinstance(parameters.names, tuple) or not all(parameters.names):
                raise TypeError(f"{shown(parameters)}: give its names as a tuple")
        return cls(
            decompositions=_by_name("decomposition", decompositions),
            policies=_by_name("policy", policies),
            adapters=_by_name("adapter", adapters),
            rules=rules,
            parameter_rules=parameter_rules,
            tensor_rules=_by_name("tensor rule", others),
            model_folders=_by_name("model folder", folders),
        )

    @property
    def words(self) -> list[str]:
        """One line for each declaration, in words."""
        return [
            *(f"decomposition {name}" for name in self.decompositions),
            *(f"policy {name}" for name in self.policies),
            *(f"adapter {name}" for name in self.adapters),
            *(f"layer rule {rule.layer}" for rule in self.rules),
            *(f"parameter rule {rule.layer}" for rule in self.parameter_rules),
            *(f"tensor rule {name}" for name in self.tensor_rules),
            *(f"model folder {name}" for name in self.model_folders),
        ]


def check_api(module: ModuleType) -> None:
    """Check that a plugin was written for a contract that this version keeps.

    Raises:
        TypeError: it was not, or does not say.
    """
    stated = getattr(module, "RANKFOLD_API", None)
    if not (isinstance(stated, tuple) and len(stated) == 2):
        raise TypeError(f"RANKFOLD_API is {shown(stated)}; state it as {API}")
    # A higher minor may rely on arguments and attributes that are not here yet.
    if stated[0] != API[0] or stated[1] > API[1]:
        raise TypeError(f"RANKFOLD_API is {stated}; this rankfold offers {API}")


def check_marked(module: ModuleType) -> None:
    """Check that no hook of a plugin is passed over.

    Raises:
        TypeError: a function has the name of a hook and no mark.
    """
    # pluggy takes unmarked functions for helpers, so that a forgotten mark would look like a plugin
    # that declares nothing.
    for name, value in vars(module).items():
        hook = name.startswith(f"{PROJECT}_") and callable(value)
        if hook and not hasattr(value, f"{PROJECT}_impl"):
            raise TypeError(
                f"function {name!r} is not marked with rankfold.plugins.hookspecs.hookimpl"
            )


def _check_adapters(adapters: Iterable[object]) -> None:
    for spec in adapters:
        if not isinstance(spec, AdapterSpec):
            raise TypeError(f"{shown(spec)} is not an AdapterSpec")
        # Only the form of a target is checked. To resolve one would import the framework.
        demos = () if spec.demo is None else (spec.demo.target,)
        for kind in spec.formats:
            if kind.marker and (kind.suffixes or kind.signatures):
                raise TypeError(
                    f"{shown(kind)}: a marker is for folders, suffixes and signatures are for files"
                )
        readers = (file_format.read for file_format in spec.formats)
        whole = (target for file in spec.model_files for target in (file.read, file.write))
        _check_targets(spec, (*spec.model_types, spec.target, *readers, *whole, *demos))
        if not isinstance(spec.install, str):
            raise TypeError(f"{shown(spec)}: install is no text; give a command")
        for parts in (spec.wrapper_parts, spec.wrapper_fronts):
            # A text in place of a tuple would be taken for parts of one letter.
            if not (isinstance(parts, tuple) and all(map(_is_part, parts))):
                raise TypeError(f"{shown(spec)}: {shown(parts)} is no tuple of parts of names")


def _is_part(part: object) -> bool:
    return isinstance(part, str) and bool(part) and "." not in part


def _check_folders(folders: Iterable[object]) -> None:
    for folder in folders:
        if not isinstance(folder, ModelFolder):
            raise TypeError(f"{shown(folder)} is not a ModelFolder")
        functions = (getattr(folder, part) for part in _FOLDER)
        _check_targets(folder, (*folder.model_types, *functions))
        if not isinstance(folder.settings, tuple) or not folder.settings:
            raise TypeError(f"{shown(folder)}: name entries of config.json in a tuple")
        if not isinstance(folder.weights, str) or not folder.weights.isidentifier():
            raise TypeError(f"{shown(folder)}: {shown(folder.weights)} is no start of file names")


def _check_parts(what: str, items: Iterable[object], parts: Sequence[str]) -> None:
    for item in items:
        for part in parts:
            if not callable(getattr(item, part, None)):
                raise TypeError(f"{what} {shown(item)} has no method {part!r}")


def _check_targets(item: object, targets: Iterable[object]) -> None:
    for target in targets:
        if not (isinstance(target, str) and all(target.partition(":"))):
            raise TypeError(f"{shown(item)}: {shown(target)} is not of the form 'module:name'")


def _by_name(what: str, items: Iterable[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for item in items:
        name = getattr(item, "name", None)
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise TypeError(f"{what} {shown(item)} has the name {shown(name)}; give it a word")
        if name in named:
            raise ValueError(f"{what} {name!r} is declared twice")
        # A plain string: a subclass may have an `__eq__` or `__hash__` of its own.
        named[str.__str__(name)] = item
    return named
