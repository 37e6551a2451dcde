"""A program for atheris.

`python -m tests.core.checkpoints.atheris_harness [options of libFuzzer] CORPUS`
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["rankfold.checkpoints", "rankfold.storage"]):
    from tests.core.checkpoints.fuzzing import harmless

FOLDER = Path(tempfile.mkdtemp(prefix="rankfold-fuzz-"))


def one(data: bytes) -> None:
    """One input: the content of a file."""
    results = FOLDER / "results"
    results.mkdir(exist_ok=True)
    (FOLDER / "x.safetensors").write_bytes(data)
    harmless(FOLDER / "x.safetensors", results)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
