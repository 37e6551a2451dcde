"""Files of a compressed model that are loaded into a model without its plans are an error.

transformers would load it: with a report on its log that tensors are missing and others not
expected, and with every compressed layer at random. It happens where `config=` or `state_dict=`
goes past the config.json that was written with the files.
"""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from rankfold.console import some
from rankfold.errors import RankfoldError
from rankfold.storage.model_folders import read_settings
from rankfold_transformers.config_entry import recorded

_METHOD = "from_pretrained"
_MARK = "_rankfold_watches"
"""An attribute of the method that watches, and of what others wrap around it by functools.wraps."""


def watch() -> None:
    """Have `from_pretrained` of all models look at what it could not load; once."""
    original = vars(PreTrainedModel)[_METHOD].__func__
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def watched(cls: Any, *args: Any, output_loading_info: bool = False, **options: Any) -> Any:
        model, report = original(cls, *args, output_loading_info=True, **options)
        folder = args[0] if args else options.get("pretrained_model_name_or_path")
        _check(model, report, None if folder is None else Path(folder))
        return (model, report) if output_loading_info else model

    setattr(watched, _MARK, True)
    exchanged: Any = watched
    setattr(PreTrainedModel, _METHOD, classmethod(exchanged))


def _check(model: Any, report: Any, folder: Path | None) -> None:
    """Check that nothing is a layer in a model, whose weight is missing, and a chain in the files.

    Raises:
        RankfoldError: something is.
    """
    missing, unexpected = report.get("missing_keys"), report.get("unexpected_keys")
    if not missing or not unexpected:
        return
    try:
        from rankfold_transformers.file_names import chains_of, names_of
    except ImportError:  # a transformers before 5 renames nothing by patterns
        return
    chains = chains_of(unexpected)
    names = names_of(model, [*(weight for _, weight in chains), *unexpected]) if chains else {}
    lacking = set(missing)
    if folder is None or recorded(read_settings(folder)) is None:
        # Heads differ between models that share a base, and others make theirs of several layers,
        # too: of these transformers says itself that they are new.
        start = f"{model.base_model_prefix}."
        is_base = not hasattr(model, model.base_model_prefix)
        lacking = {name for name in lacking if is_base or name.startswith(start)}
    layers = [path for path, weight in chains if names[weight] in lacking]
    if layers:
        raise RankfoldError(
            f"the files hold chains of rankfold in the place of {some(layers)}, of which the "
            "configuration of the model says nothing, so that these layers would be random: leave "
            "config= out, or pass the one that was written with the files, "
            "AutoConfig.from_pretrained(folder), with your changes; with state_dict=, too"
        )


watch()
