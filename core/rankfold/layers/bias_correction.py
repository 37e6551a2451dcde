"""The mean output of a layer, and biases that keep it whatever the error of the weight is."""

from __future__ import annotations

from dataclasses import replace

from rankfold import linalg
from rankfold.calibration.weighted_norm import Metric
from rankfold.linalg import Array
from rankfold.ops import Chain, Embedding, Op


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


def mean_output(op: Op, metric: Metric, rows: Array, scale: float) -> float:
    """Return ‖E[y]‖², over the squared scale of the weight, where that is no part of the moment.

    Args:
        op: the layer.
        metric: of its inputs.
        rows: of its weight over the scale, (groups, out/groups, d).
        scale: of the weight.
    """
    if metric.mean is None or op.bias is None:
        return 0.0
    mean = linalg.einsum("god,gd->go", rows, metric.mean).reshape(-1)
    mean = mean + op.bias / scale
    return linalg.inner(mean, mean)
