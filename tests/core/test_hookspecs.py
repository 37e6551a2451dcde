"""Modules that plugins were told to import are found where they were, with a warning."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "attribute", "new"),
    [
        ("hookspecs", "hookimpl", "rankfold.plugins"),
        ("hookspecs", "LayerRule", "rankfold.plugins"),
        ("contracts", "Decomposition", "rankfold.plugins"),
        ("contracts", "RankfoldError", "rankfold.plugins"),
        ("registry", "registry", "rankfold.plugins.registry"),
        ("reference", "reconstruct", "rankfold.ops.reference"),
    ],
)
def test_a_moved_module_has_its_names_and_says_where_they_are(
    name: str, attribute: str, new: str
) -> None:
    sys.modules.pop(f"rankfold.{name}", None)
    with pytest.warns(DeprecationWarning, match=f"has moved to {new}$"):
        old = importlib.import_module(f"rankfold.{name}")
    assert getattr(old, attribute) is getattr(importlib.import_module(new), attribute)
