"""Policies written as text: "vbmf", "energy:0.9", "budget:macs=0.5,params=0.4"."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec

from rankfold.errors import RankfoldError
from rankfold.faults import contained
from rankfold.policies.base import Policy, fraction


def policy_from_text(text: str, known: Mapping[str, type[Policy]]) -> Policy:
    """Return a policy from "name", "name:argument" or "name:field=value,field=value".

    Args:
        text: as a user writes it. Fields are those that the policy's class is made with; a value
            may be a fraction, as 1/3.
        known: the classes of policies by name.

    Raises:
        RankfoldError: an unknown name, an unknown field, or a bad argument.
    """
    name, _, argument = text.partition(":")
    if name not in known:
        names = ", ".join(sorted(known)) or "none (no plugin is installed)"
        raise RankfoldError(f"policy {name!r} is unknown; use one of {names}")
    # A class of a plugin, and the text of the user.
    with contained(f"policy {name!r}", RankfoldError):
        if "=" in argument and dataclasses.is_dataclass(known[name]):
            return known[name](**_fields(known[name], argument))
        return known[name].from_text(argument)


def _fields(policy: type[Policy], argument: str) -> dict[str, Any]:
    """Return the values of the fields in a text, as the class declares them."""
    hints = get_type_hints(policy)
    accepted = [field.name for field in dataclasses.fields(policy) if field.init]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for part in argument.split(","):
        field, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or field not in accepted or field in values:
            twice = " twice" if field in values else ""
            raise RankfoldError(
                f"policy {policy.name}: {part.strip()!r}{twice}; write {policy.name}:FIELD=VALUE, "
                f"several with commas; the fields are {', '.join(accepted)}"
            )
        try:
            number = repr(fraction(policy.name, value)) if "/" in value else value
            values[field] = msgspec.convert(number, hints[field], strict=False)
        # A type of more than numbers, as of a function, is none that a text can be converted to.
        except (msgspec.ValidationError, TypeError):
            raise RankfoldError(
                f"policy {policy.name}: {field}={value} cannot be read; a number is written as 0.5 "
                "or 1/2, and what is none is given in Python"
            ) from None
    return values
