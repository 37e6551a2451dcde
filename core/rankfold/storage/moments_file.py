"""Moments in a safetensors file: the arrays of each layer, and in the metadata what they are of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

import msgspec
import numpy as np

from rankfold.calibration.moments import LayerMoments
from rankfold.errors import RankfoldError
from rankfold.linalg import Array, is_real
from rankfold.storage.safetensors_file import Safetensors
from rankfold.storage.safetensors_header import FLOATS, Header, viewed

_VERSION = 1
_METADATA = "rankfold.moments"
_MOST = 2**53
"""Of samples and of uses: a float counts no further."""
# Of each layer: the second moment of its inputs, their mean, and the moment of the gradients, which
# may be missing.
_ARRAYS = ("inputs", "mean", "grads")


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Facts on one layer in the file's metadata; its arrays are named by its place in the list.

    Attributes:
        path: of the layer.
        samples: as in `LayerMoments`.
        uses: `LayerMoments.positions_per_example`.
    """

    path: str
    samples: int
    uses: float


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of the file's metadata.

    Attributes:
        version: of this format.
        loss: the name of the loss that the gradients are of.
        layers: in the order of their arrays.
    """

    version: int
    loss: str
    layers: list[Facts]


def check_moments_file(file: Path) -> None:
    """Check that a file says of itself what a file of moments does; read no array.

    Raises:
        RankfoldError: it does not.
    """
    _opened(file)


def _opened(file: Path) -> tuple[Safetensors, About]:
    try:
        # A link is followed here, unlike in a checkpoint: it is the user who names this one file.
        real = Path(os.path.realpath(file))
        stored = Safetensors(real)
        about = _about(stored.header.metadata)
        _check_header(stored.header, len(about.layers))
    except (OSError, ValueError) as error:  # RankfoldError is a ValueError
        raise RankfoldError(f"{str(file)!r} holds no moments: {error}") from None
    return stored, about


def _about(metadata: Mapping[str, str]) -> About:
    """Return what the metadata of a file say.

    Raises:
        ValueError: they are not of moments, or of another version.
    """
    if _METADATA not in metadata:
        raise ValueError(f"it has no metadata {_METADATA!r}")
    text = metadata[_METADATA]
    try:
        # The version first, with everything else undecoded: a file of another version would else be
        # told to have fields that are missing or too many.
        version = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("version")
        if version is not None and bytes(version) != str(_VERSION).encode():
            raise ValueError(f"version {bytes(version)!r}; this rankfold reads version {_VERSION}")
        about = msgspec.json.decode(text, type=About)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"{_METADATA!r}: {error}") from None
    paths = [facts.path for facts in about.layers]
    if len(set(paths)) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"layer {twice!r} stands twice")
    return about


def _check_header(header: Header, layers: int) -> None:
    """Check that the arrays fit each other, before one of them is read.

    Raises:
        ValueError: they do not.
    """
    known = {f"{index}.{name}" for index in range(layers) for name in _ARRAYS}
    for name, entry in header.entries.items():
        if name not in known:
            raise ValueError(f"array {name!r} is of none of its {layers} layers")
        if entry.dtype not in FLOATS:
            raise ValueError(f"array {name!r} is stored as {entry.dtype}, not as real numbers")
    for index in range(layers):
        shapes = {
            name: header.entries[f"{index}.{name}"].shape
            for name in _ARRAYS
            if f"{index}.{name}" in header.entries
        }
        for name in ("inputs", "mean"):
            if name not in shapes:
                raise ValueError(f"array '{index}.{name}' is missing")
        mean = shapes["mean"]
        if len(mean) != 2 or shapes["inputs"] not in (mean, (*mean, mean[-1])):
            raise ValueError(f"inputs {shapes['inputs']} and mean {mean} do not fit each other")
        grads = shapes.get("grads", mean[:1] * 2)
        diagonal = len(grads) == 2
        square = len(grads) == 3 and grads[1] == grads[2]
        if not (diagonal or square) or grads[0] != mean[0]:
            raise ValueError(f"grads {grads} do not fit the mean {mean}")


def _checked(facts: Facts, arrays: Mapping[str, Array]) -> LayerMoments:
    """Return the moments of a layer, which can be computed with.

    Raises:
        ValueError: they cannot.
    """
    for name, values in arrays.items():
        if not is_real(values) or not np.isfinite(values).all():
            raise ValueError(f"{name} are no finite numbers")
    if not 1 <= facts.samples <= _MOST or not 0.0 <= facts.uses <= _MOST:
        raise ValueError(f"{facts.samples} samples, {facts.uses} uses")
    return LayerMoments(
        arrays["inputs"], arrays["mean"], arrays.get("grads"), facts.samples, facts.uses
    )


class Moments(Mapping[str, LayerMoments]):
    """The moments of a model's layers, by path.

    Args:
        layers: moments by path.
        loss: the name of the loss that the gradients are of; "" where there are none.
    """

    def __init__(self, layers: Mapping[str, LayerMoments], loss: str = "") -> None:
        self._layers = dict(layers)
        self.loss = loss

    def __getitem__(self, path: str) -> LayerMoments:
        return self._layers[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def save(self, file: str | PathLike[str]) -> None:
        """Write a safetensors file.

        Raises:
            RankfoldError: the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        arrays: dict[str, Array] = {}
        # Arrays go by number and not by path, which may hold what no name of a tensor may.
        for index, layer in enumerate(self.values()):
            for name in _ARRAYS:
                value = getattr(layer, name)
                if value is not None:
                    arrays[f"{index}.{name}"] = np.ascontiguousarray(value)
        facts = [
            Facts(path, layer.samples, layer.positions_per_example) for path, layer in self.items()
        ]
        about = msgspec.json.encode(About(_VERSION, self.loss, facts)).decode()
        try:
            save_file(arrays, file, metadata={_METADATA: about})
        except (OSError, SafetensorError) as error:
            raise RankfoldError(f"moments cannot be written to {str(file)!r}: {error}") from None

    @classmethod
    def load(cls, file: str | PathLike[str], *, only: str | None = None) -> Moments:
        """Read what `save` wrote.

        Args:
            file: to read.
            only: the path of the one layer to read; None for all.

        Raises:
            RankfoldError: the file is missing, damaged or holds something else.
        """
        stored, about = _opened(Path(file))
        layers = {}
        for index, facts in enumerate(about.layers):
            # Workers read one layer of a file each; the arrays of all others are left on the disk.
            if only not in (None, facts.path):
                continue
            arrays = {
                name: viewed(stored.data(entry), entry)
                for name in _ARRAYS
                if (entry := stored.header.entries.get(f"{index}.{name}")) is not None
            }
            try:
                layers[facts.path] = _checked(facts, arrays)
            except ValueError as error:
                raise RankfoldError(
                    f"{str(file)!r} holds no moments of layer {facts.path!r}: {error}"
                ) from None
        return cls(layers, about.loss)
