"""Biases that keep the mean output of a layer, whatever the error of its weight is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

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
    shift = np.einsum("god,gd->go", lost, metric.mean).reshape(-1)
    # y = W x + b, so that E[y] is kept by adding (W − Ŵ) E[x] to b.
    bias = (last.bias.astype(np.float64) + shift).astype(last.bias.dtype)
    return (*chain[:-1], replace(last, bias=bias))
