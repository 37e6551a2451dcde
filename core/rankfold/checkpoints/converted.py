"""The tensors of a checkpoint that its library makes of others when it loads them.

They take the place of those that they are made of: what is compressed is what the model computes
with, such as the stack of all experts in place of a matrix for each. They are made whenever they
are read, one conversion at a time, and never all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rankfold.adapters.loading import Conversion
from rankfold.console import some
from rankfold.errors import RankfoldError
from rankfold.linalg import Array
from rankfold.storage.model_folders import converted
from rankfold.storage.safetensors_header import Entry, check_name, nbytes


class ConvertedTensors:
    """Tensors by the names that the model has for them.

    Args:
        conversions: that make them.
        stored: the entry of each tensor of the files, by name.

    Raises:
        RankfoldError: the conversions do not fit the files or each other.
    """

    def __init__(self, conversions: Sequence[Conversion], stored: Mapping[str, Entry]) -> None:
        self._by_target: dict[str, Conversion] = {}
        self._by_source: dict[str, Conversion] = {}
        for conversion in conversions:
            for source in conversion.sources:
                if source not in stored or source in self._by_source:
                    raise RankfoldError(f"a conversion of {source!r}, which is not in the files")
                self._by_source[source] = conversion
            for target in conversion.targets:
                check_name(target)
                if target in self._by_target or target in stored.keys() - set(conversion.sources):
                    raise RankfoldError(f"a conversion makes {target!r}, which is there already")
                self._by_target[target] = conversion

    def __contains__(self, name: str) -> bool:
        return name in self._by_target

    def owners(self, stored: Mapping[str, str]) -> dict[str, str]:
        """Return the file of each tensor, those that are made going where their first source is.

        Args:
            stored: the file of each tensor that is stored.
        """
        owners: dict[str, str] = {}
        for name, file in stored.items():
            conversion = self._by_source.get(name)
            for target in (name,) if conversion is None else conversion.targets:
                owners.setdefault(target, file)
        return owners

    def entry(self, name: str) -> Entry:
        """Return type and shape of a tensor; it has no place in a file."""
        dtype, shape = self._by_target[name].targets[name]
        return Entry(name, dtype, shape, 0, nbytes(dtype, shape))

    def array(self, name: str, read: Callable[[str], Array]) -> Array:
        """Make a tensor.

        Args:
            name: of the tensor.
            read: gives the array of a stored tensor.

        Raises:
            RankfoldError: the conversion fails.
        """
        conversion = self._by_target[name]
        return converted(conversion, {source: read(source) for source in conversion.sources})[name]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on them for a plan."""
        if not self._by_target:
            return ()
        names = some(list(self._by_target))
        return (f"tensors that are made of others when the model is loaded: {names}",)

    def __repr__(self) -> str:
        return repr([(name, c.sources, c.targets[name]) for name, c in self._by_target.items()])
