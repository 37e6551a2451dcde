"""Saving a compressed model of transformers as a folder that `from_pretrained` opens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rankfold_transformers.companions import companions


def save_model(model: Any, folder: Path) -> None:
    """Write a model by its `save_pretrained`, and the files of the tokenizer it was loaded with.

    Args:
        model: of transformers, compressed.
        folder: that is there and empty.

    Raises:
        OSError: it cannot be written.
    """
    model.save_pretrained(folder)
    source = Path(model.name_or_path)
    if not model.name_or_path or not source.is_dir():
        return
    for file in companions(source):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
