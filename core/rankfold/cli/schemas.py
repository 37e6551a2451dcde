"""`rankfold schema`: the JSON schemas of plans and of recipes."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import Any

import msgspec

from rankfold.cli.options import Recipe, described
from rankfold.errors import RankfoldError
from rankfold.plan.plan import Plan

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def run(what: str) -> None:
    """Print a schema.

    Raises:
        RankfoldError: there is none of that name.
    """
    print(schema_text(what))


def schema_text(what: str) -> str:
    """Return the JSON schema of plans or of recipes, as JSON text.

    Raises:
        RankfoldError: there is none of that name.
    """
    if what not in SCHEMAS:
        raise RankfoldError(f"schema {what!r} is unknown; use {' or '.join(SCHEMAS)}")
    content = {"$schema": _DIALECT, **SCHEMAS[what]()}
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()


def _of_plan() -> dict[str, Any]:
    schema = msgspec.json.schema(Plan)
    for definition in schema["$defs"].values():
        _describe(definition)
    return schema


def _describe(definition: dict[str, Any]) -> None:
    """Give each field its line of the docstring, in place of the docstring as a whole."""
    # As Python 3.13 compiles docstrings, without their common indentation.
    text, _, _ = cleandoc(definition.get("description", "")).partition("\nExample:")
    head, _, attributes = text.partition("Attributes:")
    definition["description"] = " ".join(head.split())
    name = ""
    texts: dict[str, list[str]] = {}
    for line in attributes.splitlines():
        # Names stand at four letters from the left, what goes on below them at eight.
        if line.startswith(" " * 4) and not line.startswith(" " * 8):
            name, _, line = line.strip().partition(": ")
        texts.setdefault(name, []).append(line.strip())
    for field, value in definition.get("properties", {}).items():
        if field in texts:
            value["description"] = " ".join(filter(None, texts[field]))


def _of_recipe() -> dict[str, Any]:
    schema = msgspec.json.schema(Recipe, schema_hook=_path)
    definition = schema["$defs"][Recipe.__name__]
    definition["description"] = "A recipe of `rankfold compress` and `rankfold inspect`, in TOML."
    for name, value in definition["properties"].items():
        # TOML has no null: a field that is not given is not there.
        kinds = [kind for kind in value.get("anyOf", []) if kind != {"type": "null"}]
        value.clear()
        value.update(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
        value["description"] = described(name)
    return schema


def _path(kind: type[Any]) -> dict[str, Any]:
    if kind is Path:
        return {"type": "string"}
    raise NotImplementedError


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {"plan": _of_plan, "recipe": _of_recipe}
