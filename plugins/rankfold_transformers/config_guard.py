"""Compressed models that are saved cannot be opened by a transformers without rankfold.

It would open them, with a warning, and fill every compressed layer at random: see `config_entry`.
A configuration writes itself to config.json by a method that knows of no further entries, so the
method is exchanged, once, in the class of all configurations. What it gives for a configuration of
a model that is not compressed is what it gave before.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from transformers.configuration_utils import PretrainedConfig

from rankfold_transformers.config_entry import ATTRIBUTE, FILE, NEEDED, recorded
from rankfold_transformers.records import RankfoldConfig

_METHOD = "to_diff_dict"
_MARK = "_rankfold_guards"
"""An attribute of the method that guards, and of what others wrap around it by functools.wraps."""


def guard() -> None:
    """Have config.json of compressed models say what it takes to open them."""
    original = getattr(PretrainedConfig, _METHOD)
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def guarded(self: Any) -> dict[str, Any]:
        entries: dict[str, Any] = original(self)
        entry = getattr(self, ATTRIBUTE, None)
        # One that was read from a file and not used to load a model has it as a dictionary.
        if isinstance(entry, RankfoldConfig) or recorded({ATTRIBUTE: entry}) is not None:
            entries[FILE] = NEEDED
        return entries

    setattr(guarded, _MARK, True)
    setattr(PretrainedConfig, _METHOD, guarded)
