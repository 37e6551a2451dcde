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
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rankfold.errors import RankfoldError, Refused
from rankfold.exclusive import exclusive
from rankfold.files import sha256_of, sync
from rankfold.plan import Plan, validate
from rankfold.registry import registry
from rankfold.stored.headers import read_header

if TYPE_CHECKING:
    from rankfold.contracts import Adapter
    from rankfold.pipeline import Compressed

PLAN = "plan.json"
WEIGHTS = "weights.safetensors"
INDEX = f"{WEIGHTS}.index.json"
VERSION = 2
_MAX_PLAN_BYTES = 256 * 2**20
_NAMES = (
    ", or its checkpoint names or splits tensors otherwise than the model's own state does: "
    "compress one with the names of the state (save_pretrained(save_original_format=False))"
)
_FILE = re.compile(r"weights(-\d{5,}-of-\d{5,})?\.safetensors")


class Saved(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What plan.json holds.

    Attributes:
        rankfold: the version of this format.
        files: the hashes of the files with the weights, by name.
        plan: of the model.
        job: tells by which call a checkpoint was compressed; "" for a model. The ops of such a plan
            need not have the stride, padding and dilation of the model's.
    """

    rankfold: int
    files: dict[str, str]
    plan: Plan
    job: str = ""

    @classmethod
    def of(cls, plan: Plan, files: dict[str, str], job: str = "") -> Saved:
        """Of this version."""
        return cls(rankfold=VERSION, files=files, plan=plan, job=job)


@exclusive("compressed.model")
def save(compressed: Compressed, folder: Path, adapter: Adapter | None = None) -> None:
    """Writes a compressed model; an earlier one in the same folder is replaced as a whole.

    Args:
        compressed: the model and its plan.
        folder: made if need be, parents included.
        adapter: as for `rankfold.plan`.

    Raises:
        RankfoldError: the folder cannot be written or holds other files; nothing is left behind.
    """
    adapter = adapter or registry().adapter(compressed.model)
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow a link
    check_replaceable(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    scratch: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".rankfold-", dir=folder.parent))
        fresh = scratch / "new"
        fresh.mkdir()
        adapter.save_weights(compressed.model, fresh / WEIGHTS)
        saved = Saved.of(compressed.plan, {WEIGHTS: sha256_of(fresh / WEIGHTS)})
        (fresh / PLAN).write_bytes(msgspec.json.format(msgspec.json.encode(saved), indent=1))
        (fresh / WEIGHTS).chmod((fresh / PLAN).stat().st_mode)
        for part in (fresh / WEIGHTS, fresh / PLAN, fresh):
            sync(part)
        if folder.exists():
            folder.rename(scratch / "old")
        fresh.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise RankfoldError(f"cannot write to {str(folder)!r}: {error}") from None
    finally:
        if scratch is not None:
            if (scratch / "old").exists() and not folder.exists():
                (scratch / "old").rename(folder)
            shutil.rmtree(scratch, ignore_errors=True)
        for parent in made if not folder.exists() else ():
            with suppress(OSError):
                parent.rmdir()


@exclusive("model")
def load(
    model: Any, folder: str | PathLike[str], *, inputs: Any = None, adapter: Adapter | None = None
) -> Any:
    """A compressed copy of a fresh model, with the structure and the weights that were saved.

    Args:
        model: a model of the architecture that was compressed; its weights do not matter and it is
            not modified.
        folder: what `Compressed.save` or `compress_checkpoint` wrote.
        inputs: example inputs of one forward pass, for a framework whose models show their layers
            only when they are called (Flax Linen). Shapes are enough.
        adapter: as for `rankfold.plan`.

    Returns:
        The model; its outputs are bit for bit those of the saved one.

    Raises:
        RankfoldError: the folder is incomplete, damaged or of another version, or does not fit
            the model.
    """
    folder = Path(folder)
    saved = _read_plan(folder)
    files = [folder / name for name in sorted(saved.files)]
    for file in files:
        _check_file(file)
        if sha256_of(file) != saved.files[file.name]:
            raise RankfoldError(
                f"{str(file)!r} is not the file that {PLAN} was written with: it is damaged or was "
                "exchanged; save the model anew"
            )
    if len(files) > 1:
        _check_distinct(files)
    adapter = adapter or registry().adapter(model)
    if inputs is not None:
        adapter.trace(model, inputs)
    modules = _modules(adapter, model, saved)
    small = adapter.replace(model, modules, inplace=False)
    return adapter.load_weights(small, *files)


def saved_at(folder: Path) -> Saved | None:
    """What a folder says of itself; None where there is no such plan."""
    try:
        return _read_plan(folder)
    except RankfoldError:
        return None


def _modules(adapter: Adapter, model: Any, saved: Saved) -> dict[str, Any]:
    from rankfold.pipeline import check_planned, check_same

    plan = saved.plan
    known = adapter.layers(model)
    if saved.job:
        check_planned(plan.replaced, known, _NAMES)
    else:
        check_planned(plan.layers, known)
    names = {layer.method for layer in plan.replaced if layer.method is not None}
    methods = registry().methods(sorted(names)) if names else {}
    modules: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for layer in plan.replaced:
        assert layer.method is not None
        method = methods[layer.method]
        try:
            op = adapter.read(model, layer.path)
            check_same(layer, op)
            reason = method.refuse(op)
            if reason is not None:
                raise Refused(reason)
            modules[layer.path] = adapter.build(model, layer.path, method.template(op, layer.ranks))
        except (Refused, RankfoldError) as refused:
            failed[layer.path] = str(refused)
    if failed:
        path, why = next(iter(failed.items()))
        remedy = f"compress it anew with exclude={list(failed)}"
        raise RankfoldError(
            f"layer {path!r} of this model cannot be replaced as the plan says: {why}; {remedy}"
        )
    return modules


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
        raise RankfoldError(f"{str(file)!r} names files that no rankfold writes: {saved.files}")
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
    """Sees to it that a folder is new, empty or an earlier save.

    Raises:
        RankfoldError: it is something else, or the working directory is in it.
    """
    if "\0" in str(folder):
        raise RankfoldError(f"{str(folder)!r} is no path")
    try:
        if folder.is_symlink():
            raise RankfoldError(f"{str(folder)!r} is a link; name the folder it leads to")
        if not folder.exists():
            return
        if not folder.is_dir():
            raise RankfoldError(f"{str(folder)!r} is a file; name a folder")
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
    """Whether the working directory is a folder or lies in it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it has been deleted
        return False
    return any(folder.samefile(parent) for parent in (here, *here.parents))
