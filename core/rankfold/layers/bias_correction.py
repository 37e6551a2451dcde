"""Biases that keep the mean output of a layer, whatever the error of its weight is."""

from __future__ import annotations

from dataclasses import replace

from rankfold import linalg
from rankfold.calibration.weighted_norm import Metric
from rankfold.linalg import Array
from rankfold.ops import Chain, Embedding


def shifted(chain: Chain, metric: Metric, lost: Array) -> Chain:
    """Return a chain whose bias makes up for what the error of the weight does to the mean output.

    Args:
        chain: in place of a layer.
        metric: of the layer.
        lost: W − Ŵ, (groups, out/groups, d).
    """
    last = chain[-1]
    if metric.mean is None or last.bias is None or isinstance(last, Embedding):
        return chain
    shift = linalg.einsum("god,gd->go", lost, metric.mean).reshape(-1)
    # y = W x + b, so that E[y] is kept by adding (W − Ŵ) E[x] to b.
    bias = linalg.cast(linalg.double(last.bias) + shift, last.bias.dtype)
    return (*chain[:-1], replace(last, bias=bias))
