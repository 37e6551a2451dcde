"""Stage 3 of a call: every layer of the model, as policies see it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from rankfold.decompose.spectrum import magnitude
from rankfold.errors import RankfoldError, Refused
from rankfold.faults import of_adapter
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Usage
from rankfold.linalg import host, is_finite
from rankfold.ops import Chain, Embedding, Extent, Op, describe, is_blank, params
from rankfold.pipeline.calibrate import Calibrated
from rankfold.pipeline.session import Session


@dataclass(frozen=True, eq=False)
class ModelLayers:
    """The layers of a model, and the reason for each that cannot be read.

    Attributes:
        layers: by path, in the model's order, without their ops.
        refusals: by path, why a layer is left alone.
        unfit: by path, what is wrong with the values of a layer that can be read.
    """

    layers: Mapping[str, Layer]
    refusals: Mapping[str, str]
    unfit: Mapping[str, str]


def layer_paths(session: Session) -> Mapping[str, tuple[str, ...]]:
    """Return the paths of each layer by its first one: shared layers have several."""
    with of_adapter(session.adapter):
        return {
            path: (path, *session.adapter.aliases(session.model, path))
            for path in session.layer_classes
        }


def read_layers(
    session: Session, calibrated: Calibrated, paths: Mapping[str, tuple[str, ...]]
) -> ModelLayers:
    """Read every layer once.

    Args:
        session: of the model.
        calibrated: what is known of its data.
        paths: of each layer.
    """
    layers: dict[str, Layer] = {}
    refusals: dict[str, str] = {}
    unfit: dict[str, str] = {}
    stopwatch = _Stopwatch(session)
    for path, names in paths.items():
        try:
            layer = _layer(session, calibrated, names, stopwatch)
        except Refused as refused:
            refusals[path] = refused.reason
        else:
            layers[path] = layer
            # Values are looked at while they are at hand. That they are bad is no refusal: costs
            # are counted and a policy may leave the layer out for a better reason.
            reason = _unfit(layer.op)
            if reason:
                unfit[path] = reason
            layer.release()
    return ModelLayers(layers, refusals, unfit)


def _layer(
    session: Session, calibrated: Calibrated, paths: tuple[str, ...], stopwatch: _Stopwatch
) -> Layer:
    path = paths[0]
    trace, moments = session.trace, calibrated.moments
    # Under a trace, no extents are a layer that was not called; without one, nothing is known.
    extents = None if trace is None else trace.extents.get(path, ())
    op = session.read(path)
    is_table = isinstance(op, Embedding)
    usage = Usage(
        extents,
        # A table may also be multiplied with, as an output layer tied to it is. Only the trace sees
        # that; look-ups themselves have no MACs.
        attended=trace.macs.get(path, 0) if trace is not None and is_table else 0,
        timer=stopwatch.of(path, extents),
        # The calls of a layer that a rule reads tell of it, although the adapter knew no count, and
        # look-ups have none.
        counted=bool(extents) or is_table or not session.uncounted(path),
        params_beside=max(0, session.parameters(path, op) - params(op)),
        folded=session.folded(path),
        not_interpolated=session.not_interpolated(path),
    )
    return Layer(
        paths,
        partial(session.read, path),
        session.settings,
        usage,
        None if moments is None or path not in moments else partial(moments.__getitem__, path),
        op=op,
        reader=session.reader(path),
    )


class _Stopwatch:
    """Times of layers and of chains in their place; layers that look alike are measured once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[Hashable, tuple[float, ...]] = {}

    def of(
        self, path: str, extents: Sequence[Extent] | None
    ) -> Callable[[Sequence[Chain]], Sequence[float]]:
        """Return the timer of one layer."""
        return partial(self._seconds, path, extents)

    def _seconds(
        self, path: str, extents: Sequence[Extent] | None, chains: Sequence[Chain]
    ) -> tuple[float, ...]:
        times = self._session.can.times
        if times is None or extents is None:
            raise RankfoldError(
                f"layer {path!r}: {self._session.can.name} measures no times; use macs="
            )
        op = self._session.read(path)
        # Times depend on shapes, not on values, and a network has many layers of one shape. The
        # extents belong to the key, as the same layer costs more on a larger input.
        key = (describe(op), op.weight.dtype, tuple(extents), tuple(map(_shapes, chains)))
        if key not in self._known:
            self._known[key] = times.seconds(self._session.model, path, chains, extents)
        return self._known[key]


def _shapes(chain: Chain) -> tuple[object, ...]:
    return tuple((describe(stage), stage.bias is not None) for stage in chain)


def _unfit(op: Op) -> str:
    if is_blank(op):
        return "it has only a shape, no values"
    try:
        magnitude(op.weight)
    except Refused as refused:
        return refused.reason
    if op.bias is not None and not is_finite(op.bias):
        bias = host(op.bias)
        bad = bias.size - int(np.count_nonzero(np.isfinite(bias)))
        return f"the bias has {bad} NaN or infinite values of {bias.size}"
    return ""
