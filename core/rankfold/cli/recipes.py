"""Recipes: the options of a command in a TOML file, and the policies that they name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from rankfold.cli.arguments import imported
from rankfold.cli.options import DEFAULT_POLICY, Recipe, described
from rankfold.errors import RankfoldError
from rankfold.faults import shown
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy
from rankfold.policies.from_text import policy_from_table, policy_from_text
from rankfold.storage.safetensors_header import check_plain

_MOST = 2**20
"""Bytes of a recipe, which is read as a whole before anything in it is known."""


def read_recipe(file: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RankfoldError: it cannot be read, is no TOML, or has an unknown field or a value that none
            can have; the message names the file, the field, the value and what the field takes.
    """
    try:
        check_plain(file)
        if file.stat().st_size > _MOST:
            raise ValueError("it is larger than any recipe")
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # of which tomllib's are a kind
        raise RankfoldError(f"recipe {str(file)!r} cannot be read: {error}") from None
    try:
        recipe = msgspec.convert(table, Recipe, dec_hook=_path)
        policy_of(recipe.policy)
        overrides_of(recipe)
    except msgspec.ValidationError as error:
        raise RankfoldError(f"recipe {str(file)!r}: {_told(str(error), table)}") from None
    except RankfoldError as error:
        raise RankfoldError(f"recipe {str(file)!r}: {error}") from None
    return recipe


def merged(flags: Recipe, file: Path | None) -> Recipe:
    """Return what flags say, and where they say nothing what a recipe in a file says."""
    if file is None:
        return flags
    flagged = {
        name: value
        for name in flags.__struct_fields__
        if (value := getattr(flags, name)) is not None and value != []
    }
    return msgspec.structs.replace(read_recipe(file), **flagged)


def policy_of(spec: str | dict[str, Any] | None) -> Policy:
    """Return the policy that a text or a table stands for; the default one for None.

    Raises:
        RankfoldError: it stands for none.
    """
    if isinstance(spec, dict):
        return policy_from_table(spec, registry().policies, imported)
    return policy_from_text(spec or DEFAULT_POLICY, registry().policies, imported)


def overrides_of(recipe: Recipe) -> dict[str, Policy] | None:
    """Return the policies for some layers, by pattern; None for none.

    Raises:
        RankfoldError: a text is not PATTERN=POLICY, or names no policy.
    """
    specs: dict[str, Any] = {}
    if isinstance(recipe.overrides, list):
        for text in recipe.overrides:
            pattern, equals, policy = text.partition("=")
            if not (pattern and equals and policy):
                raise RankfoldError(f"override {text!r}; write PATTERN=POLICY, as 'head=ranks:16'")
            specs[pattern] = policy
    else:
        specs = dict(recipe.overrides or {})
    return {pattern: policy_of(spec) for pattern, spec in specs.items()} or None


def _path(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected `str`, got `{type(value).__name__}`")


def _told(error: str, table: dict[str, Any]) -> str:
    """Tell an error of msgspec by the field, its value and what the field takes."""
    unknown = re.search(r"unknown field `(.*)`", error)
    field_path = re.search(r"at `\$\.(\w+)", error)
    if field_path is None:
        field = unknown[1] if unknown else ""
        return f"field {shown(field)} is unknown; use {', '.join(Recipe.__struct_fields__)}"
    name = field_path[1]
    what = error.partition(" - at ")[0].replace("`", "").replace(" | null", "").lower()
    return f"{name} = {shown(table.get(name))}: {what}; it takes: {described(name)}"
