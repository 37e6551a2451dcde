"""Moments in a safetensors file: the arrays of each layer, and in the metadata what they are of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from os import PathLike
from pathlib import Path

import msgspec
import numpy as np

from rankfold.calibration.array_store import ArrayStore, StoredArray
from rankfold.calibration.moments import LayerMoments, StoredMoments
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.console import some
from rankfold.errors import RankfoldError
from rankfold.linalg import Array, host, is_real
from rankfold.report.notebook import folded_table
from rankfold.storage.safetensors_file import Safetensors
from rankfold.storage.safetensors_header import (
    FLOATS,
    Header,
    alignment,
    header_bytes,
    nbytes,
    viewed,
)

_VERSIONS = (1, 2)
"""The second one holds separable moments; a file without them is of the first."""
_METADATA = "rankfold.moments"
_MOST = 2**53
"""Of samples and of uses: a float counts no further."""
# Of each layer: the second moment of its inputs, or in its place the parts of a separable one;
# their mean, and the moment of the gradients, which may be missing.
_SEPARABLE = ("variances", "positions", "factor")
_ARRAYS = ("inputs", *_SEPARABLE, "mean", "grads")
_SAFETENSORS = {name: dtype for dtype, name in FLOATS.items()}


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


def write_moments(file: Path, layers: Mapping[str, LayerMoments], loss: str) -> None:
    """Write the moments of layers, by path, one layer at a time.

    Raises:
        RankfoldError: the file cannot be written.
    """
    # Arrays go by number and not by path, which may hold what no name of a tensor may.
    facts: list[Facts] = []
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for index, (path, layer) in enumerate(layers.items()):
        facts.append(Facts(path, layer.samples, layer.positions_per_example))
        for name, array in _arrays_of(layer):
            tensors[f"{index}.{name}"] = _SAFETENSORS[array.dtype.name], array.shape
    # The widest types first, as other readers expect each array at a multiple of its element's
    # size. Layers may be read anew each time, so their arrays are written in the layers' order.
    ordered = dict(sorted(tensors.items(), key=lambda item: -alignment(item[1][0])))
    begins = accumulate((nbytes(*tensor) for tensor in ordered.values()), initial=0)
    begin_of = dict(zip(ordered, begins, strict=False))
    separable = any(name.endswith(_SEPARABLE) for name in tensors)
    about = msgspec.json.encode(About(_VERSIONS[separable], loss, facts)).decode()
    start = header_bytes(ordered, {_METADATA: about})
    try:
        with file.open("wb") as stream:
            stream.write(start)
            for index, layer in enumerate(layers.values()):
                for name, array in _arrays_of(layer):
                    stream.seek(len(start) + begin_of[f"{index}.{name}"])
                    stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise RankfoldError(f"moments cannot be written to {str(file)!r}: {error}") from None


def _parts(layer: LayerMoments) -> dict[str, Array]:
    """Return the arrays of a layer by name, in the order of `_ARRAYS`."""
    inputs = layer.inputs
    parts = (
        {name: getattr(inputs, name) for name in _SEPARABLE}
        if isinstance(inputs, SeparableMoment)
        else {"inputs": inputs}
    )
    parts["mean"] = layer.mean
    return parts if layer.grads is None else parts | {"grads": layer.grads}


def _of_parts(
    parts: Mapping[str, Array], samples: int, positions_per_example: float
) -> LayerMoments:
    """Return the layer that has some arrays."""
    inputs = (
        parts["inputs"]
        if "inputs" in parts
        else SeparableMoment(*(parts[name] for name in _SEPARABLE))
    )
    return LayerMoments(inputs, parts["mean"], parts.get("grads"), samples, positions_per_example)


def _arrays_of(layer: LayerMoments) -> Iterator[tuple[str, Array]]:
    for name, value in _parts(layer).items():
        array = host(value)
        if array.dtype.name not in _SAFETENSORS:
            raise RankfoldError(f"moments: {name} of type {array.dtype}; give floats of 64 bits")
        yield name, array


def check_moments_file(file: Path) -> None:
    """Check that a file says of itself what a file of moments does; read no array.

    Raises:
        RankfoldError: it does not.
    """
    _opened(file)


def read_moments(file: Path) -> tuple[About, Mapping[str, Callable[[], LayerMoments]]]:
    """Return what a file says of itself, and by path what reads the moments of one layer.

    Args:
        file: to read.

    Raises:
        RankfoldError: the file is missing, damaged or holds something else; the readers raise it,
            too.
    """
    stored, about = _opened(file)
    return about, {
        facts.path: partial(_read_layer, stored, index, facts)
        for index, facts in enumerate(about.layers)
    }


def _read_layer(stored: Safetensors, index: int, facts: Facts) -> LayerMoments:
    arrays = {
        name: viewed(stored.data(entry), entry)
        for name in _ARRAYS
        if (entry := stored.header.entries.get(f"{index}.{name}")) is not None
    }
    try:
        return _checked(facts, arrays)
    except ValueError as error:
        raise RankfoldError(
            f"{str(stored.file)!r} holds no moments of layer {facts.path!r}: {error}"
        ) from None


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
        known = [str(number).encode() for number in _VERSIONS]
        if version is not None and bytes(version) not in known:
            raise ValueError(f"version {bytes(version)!r}; this rankfold reads versions 1 and 2")
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
        separable = not shapes.keys().isdisjoint(_SEPARABLE)
        if separable and "inputs" in shapes:
            raise ValueError(f"array '{index}.inputs' stands beside the parts of a separable one")
        for name in (*(_SEPARABLE if separable else ("inputs",)), "mean"):
            if name not in shapes:
                raise ValueError(f"array '{index}.{name}' is missing")
        mean = shapes["mean"]
        if separable:
            _check_separable(mean, *(shapes[name] for name in _SEPARABLE))
        elif len(mean) != 2 or shapes["inputs"] not in (mean, (*mean, mean[-1])):
            raise ValueError(f"inputs {shapes['inputs']} and mean {mean} do not fit each other")
        grads = shapes.get("grads", mean[:1] * 2)
        diagonal = len(grads) == 2
        square = len(grads) == 3 and grads[1] == grads[2]
        if not (diagonal or square) or grads[0] != mean[0]:
            raise ValueError(f"grads {grads} do not fit the mean {mean}")


def _check_separable(
    mean: tuple[int, ...],
    variances: tuple[int, ...],
    positions: tuple[int, ...],
    factor: tuple[int, ...],
) -> None:
    """Check that the shapes of a separable moment and of a mean fit each other.

    Raises:
        ValueError: they do not.
    """
    fits = len(mean) == len(variances) == 2 and len(positions) == len(factor) == 3
    if fits:
        order = (mean[0], variances[1] * positions[1])
        fits = mean == factor[:2] == order and factor[2] > 0
        fits = fits and positions == (mean[0], positions[1], positions[1])
        fits = fits and variances[0] == mean[0]
    if not fits:
        raise ValueError(
            f"variances {variances}, positions {positions}, factor {factor} and mean {mean} do not "
            "fit each other"
        )


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
    return _of_parts(arrays, facts.samples, facts.uses)


class Moments(Mapping[str, LayerMoments]):
    """The moments of a model's layers, by path.

    Those that `gather` and `load` return are kept in a temporary file as far as they are large, and
    each layer's are read when they are asked for.

    Args:
        layers: moments by path.
        loss: the name of the loss that the gradients are of; "" where there are none.

    Example:
        >>> model = nn.Sequential(nn.Linear(48, 64), nn.ReLU())
        >>> rf.gather(model, torch.randn(64, 48).split(16)).save("moments.safetensors")
        >>> moments = rf.Moments.load("moments.safetensors")
        >>> list(moments), moments["0"].inputs.shape
        (['0'], (1, 48, 48))
    """

    def __init__(self, layers: Mapping[str, LayerMoments], loss: str = "") -> None:
        self._layers = layers if isinstance(layers, StoredMoments) else dict(layers)
        self.loss = loss

    def __getitem__(self, path: str) -> LayerMoments:
        return self._layers[path]

    def __contains__(self, path: object) -> bool:
        return path in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"Moments({self._told()})"

    def _repr_html_(self) -> str | None:
        # Paths alone: the arrays may be on disk, and each would be read to tell its size.
        return folded_table(f"Moments of {self._told()}", {"layer": False}, [(p,) for p in self])

    def _told(self) -> str:
        paths = list(self)
        text = f"{len(paths)} layers: {some(list(map(repr, paths)))}"
        return f"{text}; loss {self.loss!r}" if self.loss else text

    def save(self, file: str | PathLike[str]) -> None:
        """Write a safetensors file.

        Raises:
            RankfoldError: the file cannot be written.
        """
        write_moments(Path(file), self._layers, self.loss)

    @classmethod
    def load(cls, file: str | PathLike[str], *, only: str | None = None) -> Moments:
        """Read what `save` wrote; the file is needed no longer afterwards.

        Args:
            file: to read.
            only: the path of the one layer to read; None for all.

        Raises:
            RankfoldError: the file is missing, damaged or holds something else.
        """
        about, readers = read_moments(Path(file))
        if only is not None:
            # Workers read one layer of a file each; the arrays of others are left on the disk.
            return cls({path: readers[path]() for path in readers if path == only}, about.loss)
        # Not left where they are: the file may be written anew meanwhile, by `save` even.
        store = ArrayStore()
        kept = {path: _kept(store, read()) for path, read in readers.items()}
        return cls(StoredMoments(kept), about.loss)

    @classmethod
    def of_file(cls, file: str | PathLike[str]) -> Moments:
        """Read the moments of each layer from a file when they are asked for.

        Args:
            file: that is not changed as long as this object is in use.

        Raises:
            RankfoldError: the file is missing or holds something else; asking for a layer raises
                it where the values of the layer are none to compute with.
        """
        about, readers = read_moments(Path(file))
        return cls(StoredMoments(readers), about.loss)


def _kept(store: ArrayStore, layer: LayerMoments) -> Callable[[], LayerMoments]:
    """Store the arrays of a layer; return what reads them."""
    parts = {name: store.keep(array) for name, array in _parts(layer).items()}
    return partial(_loaded, parts, layer.samples, layer.positions_per_example)


def _loaded(
    parts: Mapping[str, StoredArray], samples: int, positions_per_example: float
) -> LayerMoments:
    arrays = {name: part.load() for name, part in parts.items()}
    return _of_parts(arrays, samples, positions_per_example)
