"""Files that go along with the weights of a model: configuration, tokenizer, and the like.

This module imports no framework.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rankfold.errors import RankfoldError
from rankfold.plan.plan import Plan
from rankfold.storage.hub_cache import followed
from rankfold_transformers import config_entry

CONFIG = "config.json"
_SUFFIXES = frozenset((".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".bpe"))
"""Of the files of tokenizers, processors, chat templates, generation, and a model's own code."""
_LICENCES = re.compile(r"(licen[cs]e|notice|use_policy)(\..*)?", re.IGNORECASE)
# What training leaves, the files of rankfold and indices of weights. A README is the model card
# of the original, which says of it what is true of it alone.
_LEFT = re.compile(
    r"config\.json|plan\.json|.*\.index\.json|(trainer_state|.*_results|training_args)\..*",
    re.IGNORECASE,
)
_MOST = 256 * 2**20
"""Bytes of such a file; vocabularies have tens of megabytes."""


def beside(folder: Path, settings: Mapping[str, Any], plan: Plan) -> Mapping[str, bytes | Path]:
    """Return the files that make compressed weights a folder for `from_pretrained`.

    Args:
        folder: of the checkpoint that was compressed.
        settings: its config.json.
        plan: by which it was, with the names of its files.

    Raises:
        RankfoldError: its config.json tells of another quantization method.
    """
    check_method(settings)
    plans, names = config_entry.recorded(settings) or ((), "file")
    new = {
        **settings,
        config_entry.ATTRIBUTE: config_entry.entry((*plans, config_entry.written(plan)), names),
        config_entry.FILE: config_entry.NEEDED,
    }
    text = json.dumps(new, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return {CONFIG: text.encode(), **dict(companions(folder))}


def companions(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names of the files that a compressed model needs, too, and where they lie."""
    for file in sorted(folder.iterdir()):
        known = file.suffix in _SUFFIXES or _LICENCES.fullmatch(file.name)
        if not known or _LEFT.fullmatch(file.name) or file.name.startswith("."):
            continue
        path = followed(file)
        if not path.is_symlink() and path.is_file() and path.stat().st_size <= _MOST:
            yield file.name, path


def check_method(settings: Mapping[str, Any]) -> None:
    """Check that a checkpoint is not quantized: a model is opened by one method alone.

    Raises:
        RankfoldError: it is.
    """
    method = settings.get(config_entry.ATTRIBUTE)
    if method and config_entry.recorded(settings) is None:
        name = method.get("quant_method") if isinstance(method, Mapping) else method
        raise RankfoldError(
            f"{CONFIG} tells of the quantization method {name!r}, and from_pretrained opens a "
            "model by one method alone: save the model dequantized, or compress the files without "
            f"{CONFIG} beside them"
        )
