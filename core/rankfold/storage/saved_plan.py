"""Record in a folder with a compressed model: plan.json, and the names of its files."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import msgspec

from rankfold.console import some
from rankfold.errors import RankfoldError
from rankfold.plan.plan import Plan, validate
from rankfold.storage.files import sha256_of
from rankfold.storage.safetensors_header import read_header

PLAN = "plan.json"
WEIGHTS = "weights"
"""With what the names of files with weights begin, where no library gives another word."""
VERSION = 2
"""Of what a folder says of itself."""
_MAX_PLAN_BYTES = 256 * 2**20
"""Of plan.json, which is read as a whole before anything in it is known."""
# Names of files that a folder may hold without a plan that names them, which was damaged or lost.
_OURS = re.compile(
    rf"{re.escape(PLAN)}|{WEIGHTS}(-\d{{5,}}-of-\d{{5,}})?\.safetensors|"
    rf"{WEIGHTS}\.safetensors\.index\.json"
)
FILE = re.compile(r"([a-z_]+)(-\d{5,}-of-\d{5,})?\.safetensors")
"""Names of files with weights that a plan from elsewhere may give; none leads out of its folder."""


def weights_file(stem: str, number: int = 1, count: int = 1) -> str:
    """Return the name of one of the files with the weights, numbered from 1."""
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05}-of-{count:05}.safetensors"


def index_file(stem: str) -> str:
    """Return the name of the index of several files with the weights."""
    return f"{stem}.safetensors.index.json"


class Saved(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Contents of plan.json.

    Attributes:
        rankfold: the version of this format.
        files: the hashes of the files with the weights, by name.
        plan: of the model.
        job: tells by which call a checkpoint was compressed; "" for a model. The ops of such a plan
            need not have the stride, padding and dilation of the model's.
        sizes: of these files in bytes, by name; older versions wrote none.
        beside: the hashes of the files that a library needs to open the weights, by name.
    """

    rankfold: int
    files: dict[str, str]
    plan: Plan
    job: str = ""
    sizes: dict[str, int] = {}
    beside: dict[str, str] = {}

    @classmethod
    def of(
        cls,
        plan: Plan,
        folder: Path,
        files: dict[str, str],
        job: str = "",
        beside: dict[str, str] | None = None,
    ) -> Saved:
        """Return the record of a plan and of files that lie in a folder, in the present format."""
        sizes = {name: (folder / name).stat().st_size for name in files}
        return cls(
            rankfold=VERSION, files=files, plan=plan, job=job, sizes=sizes, beside=beside or {}
        )

    @property
    def stem(self) -> str:
        """Beginning of the names of the files."""
        name = FILE.fullmatch(next(iter(self.files)))
        assert name is not None  # checked when the plan is read
        return name[1]

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


def read_plan(folder: Path) -> Saved:
    """Return what plan.json of a folder says, checked.

    Raises:
        RankfoldError: it is missing, damaged or of another version.
    """
    file = folder / PLAN
    if not file.exists() and (folder / "config.json").is_file():
        raise RankfoldError(
            f"{str(folder)!r} has no {PLAN}, which Compressed.save and compress_checkpoint write; "
            "a folder that save_pretrained of a library wrote is opened by its from_pretrained"
        )
    check_file(file)
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
    if not saved.files or not all(FILE.fullmatch(name) for name in saved.files):
        raise RankfoldError(
            f"{str(file)!r} names files that no rankfold writes: {some(list(saved.files))}"
        )
    try:
        validate(saved.plan)
    except RankfoldError as error:
        raise RankfoldError(f"{str(file)!r}: {error}") from None
    return saved


def saved_at(folder: Path) -> Saved | None:
    """Return what plan.json of a folder says; None where there is no such plan or it is damaged."""
    try:
        return read_plan(folder)
    except RankfoldError:
        return None


def check_file(file: Path) -> None:
    """Check that a file of a folder is there, and no link.

    Raises:
        RankfoldError: it is not.
    """
    if file.is_symlink() or not file.is_file():
        raise RankfoldError(
            f"{str(file)!r} is missing or not a plain file; give the folder that save() wrote"
        )


def check_replaceable(folder: Path, kept: Collection[str] = ()) -> None:
    """Check that a folder is new, empty or an earlier save.

    Args:
        folder: to be replaced as a whole.
        kept: names of files in it that the next one will have, too.

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
        ours = _names_of_results(folder).union(kept)
        foreign = sorted(
            entry.name
            for entry in folder.iterdir()
            if not (_OURS.fullmatch(entry.name) or (entry.name in ours and entry.is_file()))
        )
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


def _names_of_results(folder: Path) -> set[str]:
    """Return the names of files that the plan of an earlier result says were written with it."""
    saved = saved_at(folder)
    return set() if saved is None else {*saved.files, *saved.beside, index_file(saved.stem)}


def _is_inside(folder: Path) -> bool:
    """Return whether the working directory is a folder or lies in it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it has been deleted
        return False
    return any(folder.samefile(parent) for parent in (here, *here.parents))
