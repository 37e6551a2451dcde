"""Saving a compressed model of transformers as a folder that `from_pretrained` opens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from rankfold_torch.state_io import check_merged
from rankfold_transformers.companions import CONFIG, companions


def save_model(model: Any, folder: Path) -> None:
    """Write a model by its `save_pretrained`, and the files of the tokenizer it was loaded with.

    Args:
        model: of transformers, compressed.
        folder: that is there and empty.

    Raises:
        RankfoldError: adapters of peft are on its chains.
        OSError: it cannot be written.
    """
    check_merged(model)
    model.save_pretrained(folder)
    source = _source(model.name_or_path)
    if source is None:
        return
    for name, path in companions(source):
        if not (folder / name).exists():
            shutil.copyfile(path, folder / name)


def _source(name: str) -> Path | None:
    """Return the folder that a model was loaded from; None where it is not on this machine."""
    if not name or Path(name).is_dir():
        return Path(name) if name else None
    config = cached_file(
        name,
        CONFIG,
        local_files_only=True,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if config is None else Path(config).parent
