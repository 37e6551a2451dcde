"""Writing one file of a compressed checkpoint: where every tensor goes is known beforehand."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rankfold.calibration.moments import LayerMoments
from rankfold.checkpoints.planner import LayerTensors
from rankfold.checkpoints.reader import Checkpoint
from rankfold.decompose.base import Placement
from rankfold.decompose.interpolative import with_pivots
from rankfold.errors import RankfoldError, Refused, UnfinishedError
from rankfold.layers.blas_threads import threads_for
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings
from rankfold.linalg import Array
from rankfold.ops import Op, with_weight
from rankfold.ops.reference import reconstruct, relative_distance
from rankfold.plan.plan import LayerPlan
from rankfold.plugins.planned_template import planned_template
from rankfold.plugins.registry import registry
from rankfold.storage.files import sha256_of
from rankfold.storage.moments_file import Moments
from rankfold.storage.safetensors_header import alignment, header_bytes, nbytes, numpy_dtype

_ORDER = "I64"
"""The type of orders of channels, the only integers in a chain."""


@dataclass(frozen=True)
class Part:
    """One file of the result and what goes into it.

    Attributes:
        name: of the file.
        source: of the checkpoint's file that it is made from.
        layers: that are replaced, whose weights are in that file.
        dropped: tensors that are not copied, or go with a layer.
    """

    name: str
    source: str
    layers: tuple[LayerPlan, ...]
    dropped: frozenset[str]


@dataclass(frozen=True)
class Work:
    """The facts that all files have in common; they travel to the workers.

    Attributes:
        checkpoint: opened anew by each process.
        layer_tensors: of the layers that are replaced, by path.
        folder: where the files go.
        placement: of the plan.
        seed: of the plan.
        moments: a file of them; None without.
    """

    checkpoint: Checkpoint
    layer_tensors: Mapping[str, LayerTensors]
    folder: Path
    placement: Placement
    seed: int
    moments: Path | None


class Done(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finished file.

    Attributes:
        file: its name.
        sha256: of its content.
        errors: ‖W − Ŵ‖ / ‖W‖ of its layers as they are stored, by path.
        sensitivities: of its CP layers, by path.
        tensors: the names and sizes in bytes of its tensors.
    """

    file: str
    sha256: str
    errors: dict[str, float]
    sensitivities: dict[str, float]
    tensors: dict[str, int]


def write(work: Work, part: Part) -> Done:
    """Write one file, whole or not at all, and return its record.

    Raises:
        RankfoldError: a layer cannot be decomposed as planned, or the file cannot be written.
    """
    layout = _layout(work, part)
    errors: dict[str, float] = {}
    sensitivities: dict[str, float] = {}
    try:
        with _Fresh(work.folder, part.name, layout.size) as fresh:
            fresh.put(0, [np.frombuffer(layout.header, np.uint8)])
            for name in layout.copied:
                fresh.put(layout.offsets[name], work.checkpoint.pieces(name))
            for layer in part.layers:
                stages, error, sensitivity = _decomposed(work, layer)
                errors[layer.path] = error
                if sensitivity is not None:
                    sensitivities[layer.path] = sensitivity
                for name, stage in stages.items():
                    fresh.put(layout.offsets[name], [_bytes(stage, layout.kinds[name][0])])
            sha256 = fresh.finish()
    # A full disk or a lost mount: no fault of the checkpoint or the plan, so what is finished
    # stays.
    except OSError as error:
        raise UnfinishedError(
            f"cannot write {part.name!r} to {str(work.folder)!r}: {error}; files that are finished "
            "are kept, so the same call goes on from there"
        ) from None
    return Done(
        file=part.name,
        sha256=sha256,
        errors=errors,
        sensitivities=sensitivities,
        tensors={name: nbytes(*kind) for name, kind in layout.kinds.items()},
    )


@dataclass(frozen=True)
class _Layout:
    """Places of everything in a file, in bytes.

    Attributes:
        copied: the tensors that are taken over as they are.
        kinds: type and shape of each tensor, in the order in which they lie.
        header: of the file.
        offsets: of the tensors, from the start of the file.
        size: of the file.
    """

    copied: list[str]
    kinds: Mapping[str, tuple[str, tuple[int, ...]]]
    header: bytes
    offsets: Mapping[str, int]
    size: int


def _layout(work: Work, part: Part) -> _Layout:
    checkpoint = work.checkpoint
    copied = [
        name
        for name, owner in checkpoint.owner.items()
        if owner == part.source and name not in part.dropped
    ]
    # Types and shapes of all tensors are known from headers and from templates, before anything is
    # decomposed. So the header comes first, and each tensor is written to its place as soon as it
    # is there: no more than one has to be in memory.
    kinds = {name: _kind(checkpoint, name) for name in copied}
    templates = {layer.path: _template(work, layer) for layer in part.layers}
    for path, stages in templates.items():
        tensors = work.layer_tensors[path]
        for name, stage in stages.items():
            # The first is a tensor that goes into this file, the second one anywhere in the
            # checkpoint, which `load` would find twice.
            if name in kinds or name in checkpoint:
                raise RankfoldError(f"layer {path!r}: the checkpoint has a tensor {name!r} already")
            kinds[name] = (_stored_as(checkpoint, tensors, stage), tuple(stage.shape))
    # Widest types first, as safetensors itself orders them. The header ends on a multiple of 8
    # bytes, so each tensor begins at a multiple of its own element's size and can be mapped without
    # a copy.
    order = sorted(kinds, key=lambda name: (-alignment(kinds[name][0]), name))
    kinds = {name: kinds[name] for name in order}
    # The metadata go along: libraries look in them for the framework.
    header = header_bytes(kinds, checkpoint.files[part.source].header.metadata)
    offsets, end = {}, len(header)
    for name, kind in kinds.items():
        offsets[name] = end
        end += nbytes(*kind)
    return _Layout(copied, kinds, header, offsets, end)


class _Fresh:
    """A file of known size under a temporary name, renamed once it is complete."""

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self._final = folder / name
        # A name at random: a worker of a run that was given up may still be writing the same part.
        self._file = folder / f"{name}.{secrets.token_hex(8)}.part"
        self._stream = self._file.open("x+b")
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._stream.fileno(), 0, size)  # tells of a full disk at once
            else:
                self._stream.truncate(size)
        except OSError:
            self.__exit__()
            raise

    def __enter__(self) -> _Fresh:
        return self

    def put(self, offset: int, data: Iterable[Array]) -> None:
        self._stream.seek(offset)
        for piece in data:
            self._stream.write(piece.data)

    def finish(self) -> str:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        # Read again from the file, because the pieces did not come in the order in which they lie.
        digest = sha256_of(self._file)
        # Contents are on the disk before the name is: after a power cut there is no file that has
        # the name and not the content.
        self._file.replace(self._final)
        return digest

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            self._stream.close()
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


def _kind(checkpoint: Checkpoint, name: str) -> tuple[str, tuple[int, ...]]:
    entry = checkpoint.entry(name)
    return entry.dtype, entry.shape


def _template(work: Work, layer: LayerPlan) -> Mapping[str, Array]:
    tensors = work.layer_tensors[layer.path]
    try:
        return tensors.stages(planned_template(layer, tensors.blank(work.checkpoint)))
    except Refused as refused:
        raise _not_as_planned(layer, refused) from None


def _not_as_planned(layer: LayerPlan, refused: Refused) -> RankfoldError:
    return RankfoldError(
        f"layer {layer.path!r} cannot be decomposed as planned: {refused.reason}; exclude it"
    )


def _stored_as(checkpoint: Checkpoint, tensors: LayerTensors, stage: Array) -> str:
    """Return the type that a stage is stored as: a bias keeps that of the bias.

    Everything else has that of the weight, but for integers, which order channels. In a chain only
    a bias and such an order have one axis.
    """
    if stage.dtype.kind == "i":
        return _ORDER
    if tensors.bias is not None and stage.ndim == 1:
        return checkpoint.entry(tensors.bias).dtype
    return checkpoint.entry(tensors.weight).dtype


def _decomposed(work: Work, planned: LayerPlan) -> tuple[Mapping[str, Array], float, float | None]:
    """Return the stages of a layer as they are stored, their error and their sensitivity."""
    assert planned.method is not None
    tensors = work.layer_tensors[planned.path]
    methods, moments = registry().methods([planned.method]), _moments(work, planned.path)
    try:
        # Decomposed from the tensor once more rather than sent by whoever planned it: nothing but
        # ranks travels. With the seed of the plan the candidate is the same to the last bit.
        layer = Layer(
            (planned.path,),
            lambda: tensors.read(work.checkpoint),
            Settings(methods, work.placement, work.seed),
            moments=moments,
        )
        candidate = layer.candidate(planned.method, planned.ranks)
        # Those of the plan, which is stored, whatever the processor that it was made on.
        chain = with_pivots(candidate.chain, planned.pivots)
    except Refused as refused:
        raise _not_as_planned(planned, refused) from None
    dtype = numpy_dtype(work.checkpoint.entry(tensors.weight).dtype)
    # Rounding to a narrow type may outweigh the decomposition, so the error is that of the rounded
    # factors. Out of the type's range a factor becomes infinite, and so does the error.
    rounded = tuple(_rounded(stage, dtype) for stage in chain)
    with threads_for(layer.smaller_side):
        error = relative_distance(layer.op.weight, reconstruct(layer.op, rounded))
    if not math.isfinite(error):
        raise RankfoldError(
            f"layer {planned.path!r}: its factors are out of the range of "
            f"{work.checkpoint.entry(tensors.weight).dtype}; exclude it"
        )
    try:
        stages = tensors.stages(chain)
    except Refused as refused:
        raise _not_as_planned(planned, refused) from None
    return stages, error, candidate.sensitivity


def _moments(work: Work, path: str) -> LayerMoments | None:
    if work.moments is None:
        return None
    return Moments.load(work.moments, only=path).get(path)


def _rounded(stage: Op, dtype: np.dtype[Any]) -> Op:
    weight = stage.weight.astype(dtype).astype(stage.weight.dtype)
    return with_weight(stage, weight)


def _bytes(stage: Array, dtype: str) -> Array:
    kind = np.dtype(np.int64) if dtype == _ORDER else numpy_dtype(dtype)
    values = np.ascontiguousarray(stage.astype(kind))
    return values.reshape(-1).view(np.uint8)
