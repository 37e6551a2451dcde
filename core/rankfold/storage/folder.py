"""Saving a compressed model as a folder and loading it into a fresh model.

The folder holds `plan.json` (the plan and the hashes of the weights) and `weights.safetensors`, or
several `weights-00001-of-00002.safetensors` with an index where a checkpoint in several files was
compressed. It is written under a temporary name and renamed, so there is never half of it. Loading
rebuilds the structure from the plan, without any decomposition, and runs nothing that the folder
holds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from rankfold.adapters.base import Adapter
from rankfold.adapters.capabilities import Capabilities, capabilities
from rankfold.console import some
from rankfold.errors import RankfoldError, Refused
from rankfold.faults import contained, of_adapter
from rankfold.ops.ownership import copied, protected
from rankfold.plan.plan import LayerPlan, Plan, check_planned, check_same
from rankfold.plugins.hookspecs import ModelFolder
from rankfold.plugins.model_lock import exclusive
from rankfold.plugins.planned_template import planned_template
from rankfold.plugins.registry import registry
from rankfold.storage.files import sha256_of, sync
from rankfold.storage.model_files import opened
from rankfold.storage.model_folders import (
    files_beside,
    kind_of_model,
    names_in_model,
    read_settings,
    save_model,
)
from rankfold.storage.safetensors_header import read_header
from rankfold.storage.saved_plan import (
    FILE,
    PLAN,
    WEIGHTS,
    Saved,
    check_file,
    check_replaceable,
    read_plan,
    weights_file,
)
from rankfold.storage.work_folder import SAVING, claimed, publish
from rankfold.storage.wrapper_prefixes import matched

_PATIENCE = 60.0
"""Seconds that a save waits for another one of the same folder, as processes that train together
make it: longer than it takes to write the weights, shorter than to look for what has hung."""
_NAMES = (
    ", or its checkpoint names or splits tensors otherwise than the model's own state does: "
    "compress one that is stored with the names of the state"
)
_EXCLUDED = 50
"""Layers that a remedy lists: an argument that can be pasted names all that it has to."""


@exclusive("model")
def save(model: Any, plan: Plan, folder: Path, adapter: Adapter | None = None) -> None:
    """Write a compressed model; an earlier one in the same folder is replaced as a whole.

    Args:
        model: the compressed model.
        plan: of it.
        folder: made if need be, parents included.
        adapter: as for `rankfold.plan`.

    Raises:
        RankfoldError: the folder cannot be written or holds other files than such that go with the
            model, as a tokenizer's do; nothing is left behind.
    """
    adapter = adapter or registry().adapter(model)
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow a link
    kind = kind_of_model(model)
    check_replaceable(folder, _companions(kind, folder, plan))
    with claimed(folder, _PATIENCE) as work:
        # Again, now with the lock: the first look was to leave nothing behind where the folder
        # cannot be replaced at all, and may have been a minute ago.
        companions = _companions(kind, folder, plan)
        check_replaceable(folder, companions)
        fresh = work / SAVING
        fresh.mkdir()
        if kind is None:
            adapter.save_weights(model, fresh / weights_file(WEIGHTS))
        else:
            save_model(kind, model, fresh)
        for name, file in companions.items():
            if not (fresh / name).exists():
                shutil.copyfile(file, fresh / name)
        hashes = {part.name: sha256_of(part) for part in fresh.iterdir()}
        files = {name: sha256 for name, sha256 in hashes.items() if FILE.fullmatch(name)}
        beside = {name: sha256 for name, sha256 in hashes.items() if name not in files}
        saved = Saved.of(plan, fresh, files, beside=beside)
        (fresh / PLAN).write_bytes(msgspec.json.format(msgspec.json.encode(saved), indent=1))
        # Whoever may read the plan may read the weights: a framework may write its file for the
        # owner only.
        for name in (*files, *beside):
            (fresh / name).chmod((fresh / PLAN).stat().st_mode)
        for part in fresh.iterdir():
            sync(part)
        publish(fresh, folder)


def _companions(kind: ModelFolder | None, folder: Path, plan: Plan) -> dict[str, Path]:
    """Return the files of a folder that go with a model's weights, such as its tokenizer's."""
    if kind is None or not folder.is_dir():
        return {}
    files = files_beside(kind, folder, {}, plan)
    return {name: file for name, file in files.items() if isinstance(file, Path)}


@exclusive("model")
def load(
    model: Any, folder: str | PathLike[str], *, inputs: Any = None, adapter: Adapter | None = None
) -> Any:
    """Return a compressed copy of a fresh model, with the structure and weights that were saved.

    Args:
        model: a model of the architecture that was compressed, or the file of one (.onnx); its
            weights do not matter and it is not modified.
        folder: what `Compressed.save` or `compress_checkpoint` wrote.
        inputs: example inputs of one forward pass, for a framework whose models show their layers
            only when they are called (Flax Linen). Shapes are enough.
        adapter: as for `rankfold.plan`.

    Returns:
        The model; its outputs are bit for bit those of the saved one.

    Raises:
        RankfoldError: the folder is incomplete, damaged or of another version, or does not fit
            the model.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(48, 64), nn.ReLU()), torch.randn(5, 48)
        >>> small = rf.compress(model, rf.Ranks(8))
        >>> small.save("small")
        >>> again = rf.load(nn.Sequential(nn.Linear(48, 64), nn.ReLU()), "small")
        >>> torch.equal(again(x), small.model(x))
        True
    """
    if not isinstance(folder, (str, PathLike)):
        raise RankfoldError(
            f"folder: {type(folder).__name__} is not a path; call load(model, folder), the model "
            "first"
        )
    folder = Path(folder)
    saved = read_plan(folder)
    files = [folder / name for name in sorted(saved.files)]
    # All files are hashed before anything is built, as most damage would show only as outputs that
    # are slightly wrong. The names are of the pattern of rankfold's own, checked with the plan.
    for file in files:
        check_file(file)
        if not saved.is_of(file):
            raise RankfoldError(
                f"{str(file)!r} is not the file that {PLAN} was written with: it is damaged or was "
                "exchanged; save the model anew"
            )
    if len(files) > 1:
        _check_distinct(files)
    model = opened(model)
    adapter = adapter or registry().adapter(model)
    with of_adapter(adapter):
        # An adapter may refuse layers by what a trace shows. Without inputs there is no trace, but
        # there was one when the plan was made, so that its layers are no longer in question.
        if inputs is not None:
            adapter.trace(model, inputs)
        elif (recalling := capabilities(adapter).recalling) is not None:
            recalling.recall()
        saved, names = _by_names_of(model, folder, saved, files)
        modules = modules_of(adapter, model, saved)
        small = adapter.replace(model, modules, inplace=False)
        renaming = capabilities(adapter).loads_renamed
        if names and renaming is not None:
            loaded = renaming.load_renamed(small, names, *files)
        else:
            loaded = adapter.load_weights(small, *files)
    registry().model_done(loaded, saved.plan)
    return loaded


def _by_names_of(
    model: Any, folder: Path, saved: Saved, files: Iterable[Path]
) -> tuple[Saved, Mapping[str, str]]:
    """Return the plan with the paths of a model, and its names for the tensors of the files.

    A library may have others for them than the files of its checkpoints.

    Raises:
        RankfoldError: the files do not fit the model.
    """
    kind = kind_of_model(model)
    if kind is None or not saved.job:  # a model is saved by the names of its state
        return saved, {}
    tensors = [name for file in files for name in read_header(file).entries]
    layers = [layer.path for layer in saved.plan.replaced]
    paths, names = names_in_model(kind, model, read_settings(folder), layers, tensors)
    renamed = (
        msgspec.structs.replace(layer, path=paths.get(layer.path, layer.path))
        for layer in saved.plan.layers
    )
    plan = msgspec.structs.replace(saved.plan, layers=tuple(renamed))
    return msgspec.structs.replace(saved, plan=plan), names


def modules_of(adapter: Adapter, model: Any, saved: Saved) -> dict[str, Any]:
    """Build the structure of a compressed model: blank modules in place of its replaced layers.

    Args:
        adapter: of the model.
        model: of the architecture that was compressed.
        saved: its plan.

    Raises:
        RankfoldError: the plan does not fit the model.
    """
    known = adapter.layers(model)
    # The saved model, this one or both may be wrapped by something that adds to names.
    paths = matched([layer.path for layer in saved.plan.layers], known.keys())
    plan = msgspec.structs.replace(
        saved.plan,
        layers=tuple(
            msgspec.structs.replace(layer, path=paths[layer.path]) for layer in saved.plan.layers
        ),
    )
    # Of a model every layer was listed by its adapter. What a checkpoint lists as layers, by the
    # names of tensors, may be something else in the model, which matters only for those that are
    # replaced.
    if saved.job:
        check_planned(plan.replaced, known, _NAMES)
    else:
        check_planned(plan.layers, known)
    can = capabilities(adapter)
    names = {layer.method for layer in plan.replaced if layer.method is not None}
    if names:  # an unknown method is no fault of a layer
        registry().methods(sorted(names))
    modules: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for layer in plan.replaced:
        try:
            modules[layer.path] = _module(can, model, layer, of_tensors=bool(saved.job))
        except _OtherModelError:
            raise
        except (Refused, RankfoldError) as refused:
            # Collected, not raised at once: the remedy is to compress anew, and once for all
            # layers.
            failed[layer.path] = str(refused)
    if failed:
        path, why = next(iter(failed.items()))
        layers = some(list(map(repr, failed)), _EXCLUDED)
        remedy = f"compress it anew with exclude=[{layers}]"
        raise RankfoldError(
            f"layer {path!r} of this model cannot be replaced as the plan says: {why}; {remedy}"
        )
    return modules


class _OtherModelError(RankfoldError):
    """The model is not the one of the plan, and to compress it anew would be no remedy."""


def _module(can: Capabilities, model: Any, layer: LayerPlan, *, of_tensors: bool) -> Any:
    """Build what takes the place of one layer, without the values.

    Raises:
        Refused: the layer of this model cannot be replaced as planned.
    """
    # Shapes are enough, so that models on the meta device can be loaded into.
    read = can.adapter.read if can.structured is None else can.structured.structure
    with contained("reading the layer", Refused):
        op = protected(read(model, layer.path))
    try:
        check_same(layer, op)
    except RankfoldError as error:
        # What tensors alone do not tell (groups) may differ in the model that they belong to.
        if of_tensors:
            raise
        raise _OtherModelError(
            f"{error}; give a model of the architecture and the size that was compressed"
        ) from error
    folded = "" if can.folding is None else can.folding.folded(model, layer.path)
    if of_tensors and folded:
        raise Refused(f"the tensors of a checkpoint lack its {folded}; compress the model itself")
    builds = can.builds_interpolations
    if layer.pivots and builds is not None:  # a plan for a checkpoint knows no model
        with contained("reading the layer", Refused):
            refusal = builds.why_not_interpolated(model, layer.path)
        if refusal:
            raise Refused(f"no interpolative stages can take its place: {refusal}")
    # A template may hand on the layer's own bias, which is memory of the model; the copy must not
    # share it.
    stages = tuple(map(copied, planned_template(layer, op)))
    with contained("building the replacement", Refused):
        return can.builder.build(model, layer.path, stages)


def _check_distinct(files: Iterable[Path]) -> None:
    owner: dict[str, Path] = {}
    for file in files:
        for name in read_header(file).entries:
            if owner.setdefault(name, file) is not file:
                raise RankfoldError(f"tensor {name!r} is in {str(owner[name])!r} and {str(file)!r}")
