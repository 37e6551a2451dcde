"""Saving a compressed model as a folder and loading it into a fresh model.

The folder holds `plan.json` (the plan and the hashes of the weights) and `weights.safetensors`, or
several `weights-00001-of-00002.safetensors` with an index where a checkpoint in several files was
compressed. It is written under a temporary name and renamed, so there is never half of it. Loading
rebuilds the structure from the plan, without any decomposition, and runs nothing that the folder
holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
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
from rankfold.plan.plan import LayerPlan, Plan, check_planned, check_same, validate
from rankfold.plugins.model_lock import exclusive
from rankfold.plugins.planned_template import planned_template
from rankfold.plugins.registry import registry
from rankfold.storage.files import sha256_of, sync
from rankfold.storage.model_files import opened
from rankfold.storage.safetensors_header import read_header
from rankfold.storage.work_folder import SAVING, claimed, publish
from rankfold.storage.wrapper_prefixes import matched

PLAN = "plan.json"
WEIGHTS = "weights.safetensors"
INDEX = f"{WEIGHTS}.index.json"
VERSION = 2
_MAX_PLAN_BYTES = 256 * 2**20
_PATIENCE = 60.0
"""Seconds that a save waits for another one of the same folder, as processes that train together
make it: longer than it takes to write the weights, shorter than to look for what has hung."""
_NAMES = (
    ", or its checkpoint names or splits tensors otherwise than the model's own state does: "
    "compress one that is stored with the names of the state"
)
_EXCLUDED = 50
# Names that a plan from elsewhere may give; none of them leads out of its folder.
_FILE = re.compile(r"weights(-\d{5,}-of-\d{5,})?\.safetensors")


class Saved(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Contents of plan.json.

    Attributes:
        rankfold: the version of this format.
        files: the hashes of the files with the weights, by name.
        plan: of the model.
        job: tells by which call a checkpoint was compressed; "" for a model. The ops of such a plan
            need not have the stride, padding and dilation of the model's.
        sizes: of these files in bytes, by name; older versions wrote none.
    """

    rankfold: int
    files: dict[str, str]
    plan: Plan
    job: str = ""
    sizes: dict[str, int] = {}

    @classmethod
    def of(cls, plan: Plan, folder: Path, files: dict[str, str], job: str = "") -> Saved:
        """Return the record of a plan and of files that lie in a folder, in the present format."""
        sizes = {name: (folder / name).stat().st_size for name in files}
        return cls(rankfold=VERSION, files=files, plan=plan, job=job, sizes=sizes)

    def is_of(self, file: Path) -> bool:
        """Return whether a file is the one of its name that is meant.

        Its size and what its header says of that are looked at first: a file with holes may be as
        long as it likes, and take as long to read.

        Raises:
            RankfoldError: it is not a safetensors file that is whole and sound.
        """
        try:
            size = file.stat().st_size
            if size != self.sizes.get(file.name, size):
                return False
            read_header(file)
            return sha256_of(file) == self.files[file.name]
        except OSError as error:
            raise RankfoldError(f"{str(file)!r} cannot be read: {error}") from None


@exclusive("model")
def save(model: Any, plan: Plan, folder: Path, adapter: Adapter | None = None) -> None:
    """Write a compressed model; an earlier one in the same folder is replaced as a whole.

    Args:
        model: the compressed model.
        plan: of it.
        folder: made if need be, parents included.
        adapter: as for `rankfold.plan`.

    Raises:
        RankfoldError: the folder cannot be written or holds other files; nothing is left behind.
    """
    adapter = adapter or registry().adapter(model)
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow a link
    check_replaceable(folder)
    with claimed(folder, _PATIENCE) as work:
        # Again, now with the lock: the first look was to leave nothing behind where the folder
        # cannot be replaced at all, and may have been a minute ago.
        check_replaceable(folder)
        fresh = work / SAVING
        fresh.mkdir()
        adapter.save_weights(model, fresh / WEIGHTS)
        saved = Saved.of(plan, fresh, {WEIGHTS: sha256_of(fresh / WEIGHTS)})
        (fresh / PLAN).write_bytes(msgspec.json.format(msgspec.json.encode(saved), indent=1))
        # Whoever may read the plan may read the weights: a framework may write its file for the
        # owner only.
        (fresh / WEIGHTS).chmod((fresh / PLAN).stat().st_mode)
        for part in (fresh / WEIGHTS, fresh / PLAN):
            sync(part)
        publish(fresh, folder)


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
    saved = _read_plan(folder)
    files = [folder / name for name in sorted(saved.files)]
    # All files are hashed before anything is built, as most damage would show only as outputs that
    # are slightly wrong. The names are of the pattern of rankfold's own, checked with the plan.
    for file in files:
        _check_file(file)
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
        modules = modules_of(adapter, model, saved)
        small = adapter.replace(model, modules, inplace=False)
        loaded = adapter.load_weights(small, *files)
    registry().model_done(loaded, saved.plan)
    return loaded


def plan_at(folder: Path) -> Plan:
    """Return the plan of a folder that `save` or `compress_checkpoint` wrote.

    Raises:
        RankfoldError: there is none, or it is damaged or of another version.
    """
    return _read_plan(folder).plan


def saved_at(folder: Path) -> Saved | None:
    """Return what plan.json of a folder says; None where there is no such plan or it is damaged."""
    try:
        return _read_plan(folder)
    except RankfoldError:
        return None


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
    # The saved model, this one or both may be wrapped, by torch.compile or DataParallel for
    # instance.
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


def _module(can: Capabilities, model: Any, layer: LayerPlan, *, of_tensors: bool) -> Any:
    """Build what takes the place of one layer, without the values.

    Raises:
        Refused: the layer of this model cannot be replaced as planned.
    """
    # Shapes are enough, so that models on the meta device can be loaded into.
    read = can.adapter.read if can.structured is None else can.structured.structure
    with contained("reading the layer", Refused):
        op = protected(read(model, layer.path))
    check_same(layer, op)
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


def _read_plan(folder: Path) -> Saved:
    file = folder / PLAN
    _check_file(file)
    if file.stat().st_size > _MAX_PLAN_BYTES:
        raise RankfoldError(f"{str(file)!r} is larger than any plan; it is not one of rankfold's")
    try:
        saved = msgspec.json.decode(file.read_bytes(), type=Saved)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RankfoldError(f"{str(file)!r} is damaged or not a rankfold plan: {error}") from None
    if saved.rankfold != VERSION:
        raise RankfoldError(
            f"{str(file)!r} has version {saved.rankfold}; this rankfold reads version {VERSION}"
        )
    if not saved.files or not all(_FILE.fullmatch(name) for name in saved.files):
        raise RankfoldError(
            f"{str(file)!r} names files that no rankfold writes: {some(list(saved.files))}"
        )
    try:
        validate(saved.plan)
    except RankfoldError as error:
        raise RankfoldError(f"{str(file)!r}: {error}") from None
    return saved


def _check_distinct(files: Iterable[Path]) -> None:
    owner: dict[str, Path] = {}
    for file in files:
        for name in read_header(file).entries:
            if owner.setdefault(name, file) is not file:
                raise RankfoldError(f"tensor {name!r} is in {str(owner[name])!r} and {str(file)!r}")


def _check_file(file: Path) -> None:
    if file.is_symlink() or not file.is_file():
        raise RankfoldError(
            f"{str(file)!r} is missing or not a plain file; give the folder that save() wrote"
        )


def check_replaceable(folder: Path) -> None:
    """Check that a folder is new, empty or an earlier save.

    Raises:
        RankfoldError: it is something else, or the working directory is in it.
    """
    # Asked first, as the file system's functions raise a ValueError for it, and not an OSError.
    if "\0" in str(folder):
        raise RankfoldError(f"{str(folder)!r} is no path")
    try:
        if folder.is_symlink():
            raise RankfoldError(f"{str(folder)!r} is a link; name the folder it leads to")
        if not folder.exists():
            return
        if not folder.is_dir():
            raise RankfoldError(f"{str(folder)!r} is a file; name a folder")
        # The whole folder goes when a result is put in its place, so it may hold nothing else.
        names = {entry.name for entry in folder.iterdir()} - {PLAN, INDEX}
        foreign = sorted(name for name in names if not _FILE.fullmatch(name))
        inside = _is_inside(folder)
    except OSError as error:
        raise RankfoldError(f"cannot write to {str(folder)!r}: {error}") from None
    if foreign:
        raise RankfoldError(
            f"{str(folder)!r} holds {foreign[0]!r} and would be replaced as a whole; name an empty "
            "or new folder"
        )
    if inside:
        raise RankfoldError(
            f"{str(folder)!r} is or holds the working directory and would be replaced as a whole; "
            "name another folder"
        )


def _is_inside(folder: Path) -> bool:
    """Return whether the working directory is a folder or lies in it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it has been deleted
        return False
    return any(folder.samefile(parent) for parent in (here, *here.parents))
