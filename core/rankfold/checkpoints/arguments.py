"""The arguments of `compress_checkpoint`, checked before anything is planned or written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path

from rankfold.checkpoints.planner import CheckpointAdapter, LayerTensors
from rankfold.checkpoints.reader import Checkpoint
from rankfold.errors import RankfoldError
from rankfold.pipeline.allocation import named
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy
from rankfold.policies.selection import listed
from rankfold.policies.validation import checked_policy
from rankfold.storage.moments_file import check_moments_file
from rankfold.storage.saved_plan import check_replaceable


def check_call(policy: Policy, executor: Executor | None) -> None:
    """Check what a call is carried out by.

    Raises:
        RankfoldError: the executor is none, or the policy has to see more than plans.
    """
    if executor is not None and (isinstance(executor, type) or not hasattr(executor, "submit")):
        raise RankfoldError(f"executor: {executor!r}; give a concurrent.futures.Executor")
    needs = checked_policy(policy).looks_at
    if needs != "plans":
        raise RankfoldError(
            f"{named(policy)} needs the model itself, to look at {needs}; limit params= or macs="
        )


def opened(checkpoint: str | PathLike[str], key: str | None) -> Checkpoint:
    """Return the checkpoint.

    Raises:
        RankfoldError: it cannot be read.
    """
    # An absolute path, because the checkpoint travels to workers, which may run in another folder.
    return Checkpoint(_absolute(checkpoint), key=key, as_loaded=True)


def target_of(output: str | PathLike[str], source: Checkpoint) -> Path:
    """Return the folder to write.

    Raises:
        RankfoldError: it is the checkpoint, or what is there is not to be replaced.
    """
    # Not resolved: a link in its place is to be refused, not followed.
    target = _absolute(output)
    if _same(target, source.path) or _same(target, source.folder):
        raise RankfoldError(f"output {str(target)!r} is the checkpoint itself; name another folder")
    check_replaceable(target)
    return target


def _absolute(path: str | PathLike[str]) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() follows links


def _same(path: Path, other: Path) -> bool:
    """Return whether two paths lead to one file or folder, by whatever links."""
    try:
        return path == other or path.samefile(other)
    except (OSError, ValueError):
        return False


def moments_file(moments: str | PathLike[str] | None) -> Path | None:
    """Return the path of a file of moments.

    Raises:
        RankfoldError: it is none.
    """
    if moments is None:
        return None
    file = _absolute(moments)
    check_moments_file(file)
    return file


def layers_of(source: Checkpoint, adapter: CheckpointAdapter) -> Mapping[str, LayerTensors]:
    """Return the layers of a checkpoint by path.

    Raises:
        RankfoldError: it has none.
    """
    layer_tensors = adapter.layer_tensors(source)
    if not layer_tensors:
        raise RankfoldError(
            f"{str(source.path)!r} has no tensor that is known to be the weight of a layer, by "
            f"none of the tensor rules {', '.join(registry().tensor_rules)}: do its names end in "
            ".weight, .kernel or .embedding?"
        )
    return layer_tensors


def dropped_names(
    source: Checkpoint, layer_tensors: Mapping[str, LayerTensors], drop: str | Sequence[str]
) -> frozenset[str]:
    """Return the names of the tensors that are not copied.

    Raises:
        RankfoldError: a pattern matches no tensor, or one of a layer.
    """
    patterns = listed(drop)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in source.owner):
            raise RankfoldError(f"drop: {pattern!r} matches no tensor of the checkpoint")
    names = frozenset(n for n in source.owner if any(fnmatchcase(n, p) for p in patterns))
    # Among the layers are those that stay whole: dropping one of their tensors would leave a layer
    # that no model can load.
    for tensors in layer_tensors.values():
        if tensors.weight in names or tensors.bias in names:
            raise RankfoldError(f"drop: {tensors.weight!r} or its bias is of a layer; it cannot go")
    return names
