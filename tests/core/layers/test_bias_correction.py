from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.weighted_norm import Metric
from rankfold.layers.bias_correction import mean_output, shifted
from rankfold.ops import Linear
from rankfold.ops.reference import forward

RNG = np.random.default_rng(3)
OP = Linear(RNG.standard_normal((6, 5)), RNG.standard_normal(6), groups=2)
X = RNG.standard_normal((300, 10)) + RNG.standard_normal(10)
LOSSY = (Linear(OP.weight + 0.1 * RNG.standard_normal((6, 5)), OP.bias, groups=2),)


def metric(*, mean: bool = True) -> Metric:
    parts = X.reshape(300, 2, 5).swapaxes(0, 1)
    means = parts.mean(axis=1)
    return Metric(OP, LayerMoments(parts.mT @ parts / 300, means * mean, None, 10**12, 1.0))


def test_the_bias_makes_up_for_what_the_weight_loses_of_the_mean() -> None:
    lost = (OP.weight - LOSSY[0].weight).reshape(2, 3, 5)
    kept = forward(shifted(LOSSY, metric(), lost), X).mean(axis=0)
    np.testing.assert_allclose(kept, forward(OP, X).mean(axis=0), atol=1e-9)
    assert np.abs(forward(LOSSY, X).mean(axis=0) - kept).max() > 1e-3


def test_a_chain_without_a_bias_is_left_as_it_is() -> None:
    chain = (replace(LOSSY[0], bias=None),)
    assert shifted(chain, metric(), np.ones((2, 3, 5))) is chain


def test_the_shifted_bias_has_the_dtype_of_the_bias() -> None:
    assert OP.bias is not None
    chain = (replace(LOSSY[0], bias=OP.bias.astype(np.float32)),)
    (last,) = shifted(chain, metric(), np.ones((2, 3, 5)))
    assert last.bias is not None
    assert last.bias.dtype == np.float32


def test_the_mean_output_is_that_of_the_layer_over_its_scale() -> None:
    scale = 3.0
    rows = (OP.weight / scale).reshape(2, 3, 5)
    squared = (forward(OP, X).mean(axis=0) ** 2).sum()
    assert mean_output(OP, metric(), rows, scale) == pytest.approx(squared / scale**2)
    assert mean_output(replace(OP, bias=None), metric(), rows, scale) == 0.0
