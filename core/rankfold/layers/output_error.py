"""Errors of a chain in the outputs of its layer, under moments of calibration data."""

from __future__ import annotations

import math
from dataclasses import replace

from rankfold.calibration.weighted_norm import rows_of
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.bias_correction import mean_output, shifted
from rankfold.layers.candidates import Candidate
from rankfold.ops import Op, with_weight
from rankfold.ops.ownership import protected
from rankfold.ops.reference import reconstruct


def weighted(plain: Candidate, op: Op, spectrum: Spectrum) -> Candidate:
    """Return a candidate with its loss and output error, and a bias that makes up for its mean.

    Args:
        plain: the candidate, as judged by its weight alone.
        op: the layer.
        spectrum: of the layer, with a metric.

    Raises:
        Refused: the chain does not fit the layer.
    """
    metric = spectrum.metric
    assert metric is not None
    # With second moments M = E[xxᵀ] the loss is tr(ΔM Δᵀ) of Δ = Ŵ − W, where the bias makes up for
    # the mean of it; the output error is relative to E‖y‖², in units of the spectrum.
    rows = rows_of(op) / spectrum.scale
    try:
        # In units of the spectrum, where the weight is over its largest magnitude: squares neither
        # overflow nor vanish.
        dense = reconstruct(op, plain.chain) / spectrum.scale
    except RankfoldError as error:
        raise Refused(f"{plain.method} gave a chain that does not fit the layer: {error}") from None
    difference = rows_of(with_weight(op, dense)) - rows
    lost = metric.moved(difference)
    loss = loss_of(metric.inner(lost.rows, difference), spectrum)
    chain = tuple(map(protected, shifted(plain.chain, metric, -spectrum.scale * difference)))
    power = spectrum.moved.output + mean_output(op, metric, rows, spectrum.scale)
    output = math.sqrt(max(0.0, lost.output) / max(power, 1e-300))
    return replace(plain, chain=chain, loss=loss, output=output)


def loss_of(squared: float, spectrum: Spectrum) -> float:
    """Return a squared error in units of a spectrum as a loss that compares across layers."""
    if spectrum.metric is None:
        return squared / spectrum.energy
    return (
        squared * spectrum.scale**2 * spectrum.metric.positions_per_example * spectrum.metric.unit
    )
