"""The core names no framework: adapters supply their own words and rules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CORE = Path(__file__).parents[1] / "core" / "rankfold"
FRAMEWORKS = re.compile(
    "torch|jax|flax|nnx|linen|onnx|hugging|transformers|keras|tensorflow|lightning|accelerate"
    "|fsdp|_orig_mod|DataParallel",
    re.IGNORECASE,
)
ARRAYS = "arrays are told apart by the library that computes with them, as the array API asks"
ALLOWED = {
    ("linalg/arrays.py", "JAX_BY_NUMPY"): ARRAYS,
    ("linalg/arrays.py", "is_jax_array"): ARRAYS,
    ("linalg/arrays.py", "is_torch_array"): ARRAYS,
    ("linalg/arrays.py", "stays_in_jax"): ARRAYS,
    ("linalg/arrays.py", "jax"): ARRAYS,
    ("linalg/arrays.py", "jax_enable_x64"): ARRAYS,
    ("linalg/arrays.py", "torch.bfloat16"): "a dtype that the array API standard lacks",
    ("linalg/__init__.py", "stays_in_jax"): ARRAYS,
    ("cli/app.py", "torch"): "the demo's default, which has to be the name of one",
}


def texts(file: Path) -> Iterator[str]:
    """Identifiers and texts of a file, without docstrings, which may show examples."""
    tree = ast.parse(file.read_text())
    # A text that stands alone is a docstring, of a function or of the constant above it.
    documentation = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            if node not in documentation:
                yield node.value if isinstance(node.value, str) else node.value.decode("latin-1")
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield from filter(None, (node.name, node.asname))
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.arg, ast.keyword)):
            yield node.arg or ""


def test_the_core_names_no_framework() -> None:
    named = {
        (file.relative_to(CORE).as_posix(), text)
        for file in CORE.rglob("*.py")
        for text in texts(file)
        if FRAMEWORKS.search(text)
    }
    assert named - ALLOWED.keys() == set()
    assert ALLOWED.keys() - named == set(), "no longer there: take it out of the list"


def test_pages_of_the_report_name_no_framework() -> None:
    pages = [file for file in CORE.rglob("*.j2") if FRAMEWORKS.search(file.read_text())]
    assert pages == []
