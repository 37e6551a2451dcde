"""Policies as users write them: "vbmf", "budget:macs=0.5,params=0.4", or a table of the fields."""

from __future__ import annotations

import collections.abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints

import msgspec

from rankfold.errors import RankfoldError
from rankfold.faults import contained, shown
from rankfold.policies.base import Policy, fraction

Importer: TypeAlias = Callable[[str], Any]
"""Imports what "package.module:name" says."""


def policy_from_text(
    text: str, known: Mapping[str, type[Policy]], importer: Importer | None = None
) -> Policy:
    """Return a policy from "name", "name:argument" or "name:field=value,field=value".

    Args:
        text: as a user writes it. Fields are those that the policy's class is made with; a value
            may be a fraction, as 1/3.
        known: the classes of policies by name.
        importer: of functions, for fields that take one; None where texts may not name code.

    Raises:
        RankfoldError: an unknown name, an unknown field, or a bad argument.
    """
    name, _, argument = text.partition(":")
    policy = _class_of(name, known)
    # A class of a plugin, and the text of the user.
    with contained(f"policy {name!r}", RankfoldError):
        if "=" in argument and dataclasses.is_dataclass(policy):
            return policy(**_fields(policy, _split(policy, argument), importer))
        return policy.from_text(argument)


def policy_from_table(
    table: Mapping[str, Any], known: Mapping[str, type[Policy]], importer: Importer | None = None
) -> Policy:
    """Return a policy from its fields, {"name": "budget", "macs": 0.5}.

    Args:
        table: the name of the policy and the fields that its class is made with.
        known: the classes of policies by name.
        importer: as for `policy_from_text`.

    Raises:
        RankfoldError: no name or an unknown one, an unknown field, or a bad value.
    """
    fields = dict(table)
    name = fields.pop("name", None)
    if not isinstance(name, str):
        raise RankfoldError(f'policy {shown(table)}: give its name, as name = "budget"')
    policy = _class_of(name, known)
    if not dataclasses.is_dataclass(policy):
        raise RankfoldError(f'policy {name!r} has no fields; write it as text, "{name}:..."')
    with contained(f"policy {name!r}", RankfoldError):
        return policy(**_fields(policy, fields, importer))


def text_of(policy: Policy, known: Mapping[str, type[Policy]]) -> str | None:
    """Return the text that stands for a policy; None where none does, as for one of functions."""
    # Fields and comparisons of plugins are code of others, which fails as it likes.
    with suppress(RankfoldError), contained("policy", RankfoldError):
        for text in _texts(policy, known):
            with suppress(RankfoldError):
                if policy_from_text(text, known) == policy:
                    return text
    return None


def _texts(policy: Policy, known: Mapping[str, type[Policy]]) -> Iterator[str]:
    """Yield texts that may stand for a policy, the shortest first."""
    name = policy.name
    if known.get(name) is not type(policy) or not dataclasses.is_dataclass(policy):
        return
    fields = {
        field.name: value
        for field in dataclasses.fields(policy)
        if (value := getattr(policy, field.name)) != field.default
    }
    if len(fields) == 1:
        (value,) = fields.values()
        parts = value if isinstance(value, tuple) else (value,)
        yield f"{name}:{','.join(map(str, parts))}"
    pairs = ",".join(f"{field}={value}" for field, value in fields.items())
    yield f"{name}:{pairs}" if fields else name


def _class_of(name: str, known: Mapping[str, type[Policy]]) -> type[Policy]:
    if name not in known:
        names = ", ".join(sorted(known)) or "none (no plugin is installed)"
        raise RankfoldError(f"policy {name!r} is unknown; use one of {names}")
    return known[name]


def _accepted(policy: type[Policy]) -> list[str]:
    return [field.name for field in dataclasses.fields(policy) if field.init]  # type: ignore[arg-type]


def _split(policy: type[Policy], argument: str) -> dict[str, str]:
    """Return the texts of the fields in an argument."""
    values: dict[str, str] = {}
    for part in argument.split(","):
        field, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or field in values:
            twice = " twice" if field in values else ""
            raise _unknown(policy, f"{part.strip()!r}{twice}")
        values[field] = value
    return values


def _fields(
    policy: type[Policy], values: Mapping[str, Any], importer: Importer | None
) -> dict[str, Any]:
    """Return values as the class declares its fields."""
    hints = get_type_hints(policy)
    for field, value in values.items():
        if field not in _accepted(policy):
            raise _unknown(policy, repr(f"{field}={value}"))
    return {
        field: _value(f"policy {policy.name}: {field}", value, hints[field], importer, policy.name)
        for field, value in values.items()
    }


def _value(what: str, value: Any, hint: Any, importer: Importer | None, policy: str) -> Any:
    if importer is not None and isinstance(value, str) and ":" in value and _of_functions(hint):
        return importer(value)
    try:
        number = value
        if isinstance(value, str) and "/" in value:
            number = repr(fraction(policy, value))
        return msgspec.convert(number, hint, strict=False)
    # A type of more than numbers, as of a function, is none that a text can be converted to.
    except (msgspec.ValidationError, TypeError):
        functions = "as package.module:function" if importer else "in Python"
        raise RankfoldError(
            f"{what}={value} cannot be read; a number is written as 0.5 or 1/2, and what is none "
            f"is given {functions}"
        ) from None


def _of_functions(hint: Any) -> bool:
    """Return whether a field takes a function."""
    return any(get_origin(part) is collections.abc.Callable for part in (hint, *get_args(hint)))


def _unknown(policy: type[Policy], what: str) -> RankfoldError:
    return RankfoldError(
        f"policy {policy.name}: {what}; write {policy.name}:FIELD=VALUE, several with commas; the "
        f"fields are {', '.join(_accepted(policy))}"
    )
