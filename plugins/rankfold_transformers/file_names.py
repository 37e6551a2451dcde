"""Names of tensors in the files of transformers' models, and those that the models have for them.

transformers renames tensors when it loads a model, by patterns on their names. The names of a
chain's tensors are not those that the patterns were made for: so the layer's weight is renamed, as
transformers does it, and its chain stands where the model has the layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from rankfold.errors import RankfoldError

_WEIGHT = ".weight"
_FACTORS = "parametrizations"
_FACTOR = re.compile(rf"(?P<owner>(.+\.)?){_FACTORS}\.(?P<name>[^.]+)\.original(?P<number>\d+)")


class FileNames:
    """The names that a model has for the tensors of its files.

    Args:
        model: of transformers, not compressed; its values do not matter.

    Attributes:
        converters: those of transformers' conversions that make tensors of others.
    """

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        transforms = get_model_conversion_mapping(model)
        self._renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        self.converters = [each for each in transforms if isinstance(each, WeightConverter)]
        self._prefix = model.base_model_prefix
        self.state: dict[str, Any] = model.state_dict()

    def of(self, names: Iterable[str]) -> dict[str, tuple[str, str | None]]:
        """Return the model's name for each, and the pattern of a converter that takes it.

        Args:
            names: of all tensors that are renamed; some patterns hold only where others do.
        """
        return {name: self._of(name) for name in sorted(names, key=dot_natural_key)}

    def _of(self, name: str) -> tuple[str, str | None]:
        """Rename a tensor as `from_pretrained` does."""
        renamed, pattern = rename_source_key(
            name, self._renamings, self.converters, self._prefix, self.state
        )
        # A name that the model itself has may look like one of the files.
        if renamed not in self.state and self._stripped(name) in self.state:
            return self._stripped(name), None
        return renamed, pattern

    def _stripped(self, name: str) -> str:
        """Return a name of the model, of its base or of it as the base of another, as it has it."""
        return rename_source_key(name, [], [], self._prefix, self.state)[0]


def names_in(
    model: Any, layers: Sequence[str], tensors: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the paths of layers in a model, and its names for the tensors of its files.

    Args:
        model: of transformers, before the layers are replaced.
        layers: that are replaced, by their paths in the files; those within chains of others after
            these.
        tensors: of the files.

    Raises:
        RankfoldError: the files hold tensors that transformers makes others of.
    """
    paths, names, rest = _chains(model, layers, tensors)
    for name, (renamed, pattern) in FileNames(model).of(rest).items():
        if pattern is not None:
            raise RankfoldError(
                f"transformers makes other tensors of {name!r} when it loads a model: open the "
                "folder with from_pretrained"
            )
        names[name] = renamed
    return paths, names


def chains_in(
    model: Any, layers: Sequence[str], tensors: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the paths of layers in a model, and its names for the tensors of their chains.

    Layers that the model does not have, of another head, are not among them.

    Args:
        model: as for `names_in`.
        layers: as for `names_in`.
        tensors: as for `names_in`.

    Raises:
        RankfoldError: transformers makes other tensors of a layer's weight.
    """
    paths, names, _ = _chains(model, layers, tensors)
    return paths, names


def chains_of(tensors: Iterable[str]) -> list[tuple[str, str]]:
    """List what may be layers that a chain stands for, by names alone: modules 0 and 1 of a parent.

    Args:
        tensors: of the files.

    Returns:
        The path of each, and the name that its weight would have, which is no tensor of the files.
    """
    names = set(tensors)
    stages: dict[tuple[str, str], set[str]] = {}
    for name in names:
        words = name.split(".")[:-1]
        # A stage may have become a chain of its own: "fc.0.1.weight".
        while words and words[-1].isdigit():
            stage = words.pop()
            path = ".".join(words)
            stages.setdefault((path, f"{path}{_WEIGHT}"), set()).add(stage)
        if match := _FACTOR.fullmatch(name):
            path = match["owner"] + match["name"]
            stages.setdefault((path, path), set()).add(match["number"])
    # The last stage of a chain has the bias of the layer; layers in a sequence of the model's own
    # usually have one each.
    return sorted(
        (path, weight)
        for (path, weight), seen in stages.items()
        if {"0", "1"} <= seen and not {weight, f"{path}.0.bias"} & names
    )


def names_of(model: Any, tensors: Sequence[str]) -> dict[str, str]:
    """Return the model's names for tensors of its files.

    Args:
        model: of transformers.
        tensors: all that are renamed, as for `FileNames.of`.
    """
    return {name: renamed for name, (renamed, _) in FileNames(model).of(tensors).items()}


def _chains(
    model: Any, layers: Sequence[str], tensors: Sequence[str]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return paths of layers, names of their chains' tensors, and the other tensors."""
    by_start = {start: path for path in layers for start in (f"{path}.", _factors(path))}
    owners: dict[str, str] = {}
    rest: list[str] = []
    for name in tensors:
        starts = (name[: at + 1] for at, letter in enumerate(name) if letter == ".")
        start = next((start for start in starts if start in by_start), None)
        if start is None:
            rest.append(name)
        else:  # the outermost layer's, whose chain holds the chains of layers within it
            owners[name] = start
    outermost = {by_start[start]: start == f"{by_start[start]}." for start in owners.values()}
    weights = {
        path: f"{path}{_WEIGHT}" if is_module else path for path, is_module in outermost.items()
    }
    known = FileNames(model)
    renamed = known.of((*weights.values(), *rest))
    paths: dict[str, str] = {}
    for path, weight in weights.items():
        name, pattern = renamed[weight]
        if pattern is not None:
            raise RankfoldError(
                f"transformers makes other tensors of {weight!r} when it loads a model, and it was "
                "compressed by itself: compress the checkpoint anew where transformers is installed"
            )
        # A head that this model has not is none of its layers, as its tensors are none of its.
        if name in known.state:
            paths[path] = name.removesuffix(_WEIGHT) if outermost[path] else name
    for path in layers:
        outer = next((o for o in weights if path.startswith(f"{o}.")), None)
        if outer in paths:
            paths[path] = paths[outer] + path.removeprefix(outer)
    names = {}
    for name, start in owners.items():
        path = by_start[start]
        if path not in paths:
            continue
        target = f"{paths[path]}." if outermost[path] else _factors(paths[path])
        names[name] = target + name.removeprefix(start)
    return paths, names, rest


def _factors(path: str) -> str:
    """Return with what the names of a parameter's factors begin."""
    owner, dot, last = path.rpartition(".")
    return f"{owner}{dot}{_FACTORS}.{last}."
