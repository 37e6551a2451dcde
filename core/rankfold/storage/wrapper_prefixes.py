"""The parts that wrappers of a model add to the names of its tensors, and names without them.

`torch.compile`, FSDP and activation checkpointing put a part of their own into a name wherever they
wrap a module; DataParallel puts "module" in front of all names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from rankfold.errors import RankfoldError

_PARTS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"}
)
_FRONT = "module."


def unwrapped(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the names as they are without wrappers.

    Args:
        names: of all tensors, or of all layers.

    Returns:
        The name without wrappers of each, and the parts that were left out.

    Raises:
        RankfoldError: two of the names are one without them.
    """
    short: dict[str, str] = {}
    parts: set[str] = set()
    for name in names:
        kept = [part for part in name.split(".") if part not in _PARTS]
        parts |= _PARTS.intersection(name.split("."))
        short[name] = ".".join(kept)
    # Only where every name has it: "module" in front of some is a part of the model's own. A loop,
    # as wrappers may be put around each other.
    while short and all(name.startswith(_FRONT) for name in short.values()):
        parts.add(_FRONT.rstrip("."))
        short = {name: value.removeprefix(_FRONT) for name, value in short.items()}
    # Two tensors that fall together would silently be one, so that is an error. It happens where a
    # state holds both the wrapped model and the plain one.
    owners: dict[str, str] = {}
    for name, value in short.items():
        if owners.setdefault(value, name) != name:
            raise _twice(owners[value], name, value)
    fronted = {value: value.removeprefix(_FRONT) for value in owners if value.startswith(_FRONT)}
    if fronted and owners.keys() >= set(fronted.values()):  # else it is a part of the model's own
        value, bare = next(iter(fronted.items()))
        raise _twice(owners[bare], owners[value], bare)
    return short, tuple(sorted(parts))


def _twice(first: str, second: str, value: str) -> RankfoldError:
    return RankfoldError(
        f"{first!r} and {second!r} are both {value!r} without what wrappers of the model add to "
        "names; keep one of them"
    )


def matched(names: Collection[str], wanted: Collection[str]) -> Mapping[str, str]:
    """Return each name as a model has it, whose wrappers may be others than those of the names.

    Args:
        names: that are stored.
        wanted: those of the model.

    Returns:
        The model's name for each; a name that the model does not have in any form as it is.
    """
    known = set(wanted)
    # The usual case, and it has to be exact: a model may have names of its own that look wrapped.
    if known.issuperset(names):
        return {name: name for name in names}
    model = {short: name for name, short in unwrapped(wanted)[0].items()}
    stored = unwrapped(names)[0]
    heads = {short.partition(".")[0] for short in stored.values()}
    if len(heads) == 1 and not model.keys() >= set(stored.values()):
        (head,) = heads  # the name that another module, LightningModule for one, has for the model
        inner = {name: short.removeprefix(f"{head}.") for name, short in stored.items()}
        if model.keys() >= set(inner.values()):
            stored = inner
    return {name: model.get(short, name) for name, short in stored.items()}
