"""Renaming of the tensors of a compressed model while transformers loads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers.core_model_loading import WeightRenaming


class ChainNames(WeightRenaming):
    """Stands in the place of all renamings of a model: some names are known, others go their way.

    Args:
        names: of the model for names in the files.
        known: names of tensors that are loaded by these names.
        others: transformers' renamings, in order, for all other tensors.
    """

    __slots__ = ("_known", "_names", "_others")

    def __init__(
        self, names: Mapping[str, str], known: Collection[str], others: Sequence[WeightRenaming]
    ) -> None:
        # A pattern that nothing matches, for this one looks names up.
        super().__init__(r"(?!)", "")
        self._names = names
        self._known = known
        self._others = others

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        """Return the model's name for a tensor, without a pattern: it is no converter's."""
        if source_key in self._names:
            return self._names[source_key], None
        renamed = source_key
        for renaming in () if source_key in self._known else self._others:
            renamed, _ = renaming.rename_source_key(renamed)
        return renamed, None


def chain_names(
    conversions: Sequence[Any], names: Mapping[str, str], known: Collection[str]
) -> list[Any]:
    """Return transformers' conversions with a `ChainNames` in the place of all renamings.

    Args:
        conversions: of a model, renamings and converters.
        names: of the model for names in the files.
        known: names of tensors where the files have those of the model; there nothing is
            converted.
    """
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if not isinstance(each, WeightRenaming)]
    return [ChainNames(names, known, renamings), *(() if known else converters)]
