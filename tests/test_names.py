"""Names say what they hold, so that they can be searched for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = frozenset(["found", "made", "own", "one", "place", "given", "held", "met", "slot"])


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Variables, arguments and attributes that are set."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


@pytest.mark.parametrize("folder", ["core", "backends", "plugins"])
def test_no_variable_has_a_name_that_says_nothing(folder: str) -> None:
    nameless = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line, name in names(ast.parse(file.read_text()))
        if name.strip("_").lower() in WORDS
    ]
    assert not nameless, "\n".join(nameless)
