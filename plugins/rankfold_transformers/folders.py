"""Answers of transformers about checkpoints; this module imports no framework.

Without transformers or PyTorch checkpoints are compressed by names and shapes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from rankfold.ops import Op
from rankfold.plugins import Conversion
from rankfold_transformers.companions import check_method
from rankfold_transformers.config_entry import recorded


def conversions(
    settings: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> Iterable[Conversion]:
    """Return the conversions that transformers makes when it loads a checkpoint.

    Raises:
        RankfoldError: the checkpoint is quantized.
    """
    check_method(settings)
    # Of a compressed model that was saved, the tensors are those of the model already.
    if not _installed() or _has_names_of_model(settings):
        return ()
    from rankfold_transformers.meta_models import model_of
    from rankfold_transformers.tensor_conversions import conversions_of

    model = model_of(settings)
    return () if model is None else conversions_of(model, tensors)


def refusals(
    settings: Mapping[str, Any], layers: Mapping[str, tuple[str, Op]]
) -> Mapping[str, str]:
    """Say which layers of a checkpoint the model of its config.json does not let go, and why."""
    if not _installed() or recorded(settings):
        return {}  # the layers of a compressed model stand within chains that the model has not
    from rankfold_transformers.meta_models import model_of, refusals_of

    model = model_of(settings)
    return {} if model is None else refusals_of(model, layers)


def names(
    model: Any, settings: Mapping[str, Any], layers: Sequence[str], tensors: Sequence[str]
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the model's paths and names for those in the files of a compressed checkpoint.

    Raises:
        RankfoldError: the files hold tensors that are converted when they are loaded.
    """
    if not _installed() or _has_names_of_model(settings):
        return {}, {}
    from rankfold_transformers.file_names import names_in

    return names_in(model, layers, tensors)


def save(model: Any, folder: Any) -> None:
    """Write a compressed model as `save_pretrained` does, with the files of its tokenizer."""
    from rankfold_transformers.saving import save_model

    save_model(model, folder)


def _has_names_of_model(settings: Mapping[str, Any]) -> bool:
    """Return whether the files of a compressed model have the names of its state."""
    record = recorded(settings)
    return record is not None and record[1] == "model"


def _installed() -> bool:
    # transformers has rules for names in files that can be asked for from version 5 on.
    needed = ("torch", "transformers", "transformers.core_model_loading")
    return all(find_spec(name) is not None for name in needed)
