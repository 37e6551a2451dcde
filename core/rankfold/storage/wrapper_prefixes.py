"""Names of tensors and layers without what wrappers of a model add to them.

Frameworks declare these parts (`AdapterSpec`): some stand wherever a module is wrapped, some in
front of all names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from rankfold.errors import RankfoldError
from rankfold.plugins.registry import registry


def wrapper_names() -> frozenset[str]:
    """Return all parts that wrappers add, wherever they stand."""
    specs = registry().adapters.values()
    return frozenset(part for s in specs for part in (*s.wrapper_parts, *s.wrapper_fronts))


def unwrapped(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the names as they are without wrappers.

    Args:
        names: of all tensors, or of all layers.

    Returns:
        The name without wrappers of each, and the parts that were left out.

    Raises:
        RankfoldError: two of the names are one without them.
    """
    specs = registry().adapters.values()
    anywhere = frozenset(part for spec in specs for part in spec.wrapper_parts)
    fronts = tuple(dict.fromkeys(f"{part}." for spec in specs for part in spec.wrapper_fronts))
    short: dict[str, str] = {}
    parts: set[str] = set()
    for name in names:
        kept = [part for part in name.split(".") if part not in anywhere]
        parts |= anywhere.intersection(name.split("."))
        short[name] = ".".join(kept)
    # Only where every name has it: in front of some it is a part of the model's own. A loop, as
    # wrappers may be put around each other.
    while (front := _common_front(short.values(), fronts)) is not None:
        parts.add(front.rstrip("."))
        short = {name: value.removeprefix(front) for name, value in short.items()}
    # Two tensors that fall together would silently be one, so that is an error. It happens where a
    # state holds both the wrapped model and the plain one.
    owners: dict[str, str] = {}
    for name, value in short.items():
        if owners.setdefault(value, name) != name:
            raise _twice(owners[value], name, value)
    for front in fronts:
        fronted = {value: value.removeprefix(front) for value in owners if value.startswith(front)}
        # Else it is a part of the model's own.
        if fronted and owners.keys() >= set(fronted.values()):
            value, bare = next(iter(fronted.items()))
            raise _twice(owners[bare], owners[value], bare)
    return short, tuple(sorted(parts))


def _common_front(names: Collection[str], fronts: Iterable[str]) -> str | None:
    """Return what all of some names begin with; None where that is nothing, or there is none."""
    common = (front for front in fronts if all(name.startswith(front) for name in names))
    return next(common, None) if names else None


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
        (head,) = heads  # the name of the model within a module that trains it
        inner = {name: short.removeprefix(f"{head}.") for name, short in stored.items()}
        if model.keys() >= set(inner.values()):
            stored = inner
    return {name: model.get(short, name) for name, short in stored.items()}
