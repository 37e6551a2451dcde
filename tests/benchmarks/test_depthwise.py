"""How fast CP chains run in JAX on CPU: shift-multiply-add against XLA's depthwise convolution.

    python -m pytest tests/benchmarks/test_depthwise.py --benchmark-enable -s

prints, for each layer, the time of the CP chain with XLA's own depthwise convolution and with the
one that rankfold builds, both as a share of the dense layer's, measured in turns in one process.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import rankfold as rf

LAYERS = [(64, 56), (128, 28), (256, 14)]
ROUNDS = 15


def medians(functions: list[Any], x: jax.Array) -> list[float]:
    """Seconds of each function, measured in turns."""
    for function in functions:
        function(x).block_until_ready()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, measured in zip(functions, times, strict=True):
            start = time.perf_counter()
            function(x).block_until_ready()
            measured.append(time.perf_counter() - start)
    return [float(np.median(measured)) for measured in times]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form is for CPU alone")
@pytest.mark.parametrize(("channels", "size"), LAYERS)
def test_cp_chains_on_cpu(channels: int, size: int, benchmark: Any) -> None:
    layer = nnx.Conv(channels, channels, (3, 3), rngs=nnx.Rngs(0))
    model = nnx.Sequential(layer)
    x = jnp.asarray(
        np.random.default_rng(0).standard_normal((4, size, size, channels)), jnp.float32
    )
    ours = rf.compress(model, rf.Ranks(channels), methods="cp").model
    theirs = nnx.clone(ours)
    for stage in theirs.layers[0].layers:
        stage.conv_general_dilated = lax.conv_general_dilated
    forward = nnx.jit(lambda m, x: m(x))
    functions = [nnx.cached_partial(forward, m) for m in (model, theirs, ours)]
    np.testing.assert_allclose(functions[1](x), functions[2](x), rtol=1e-3, atol=1e-3)
    benchmark.pedantic(functions[2], (x,), rounds=3)
    if benchmark.disabled:
        return
    dense, usual, shifted = medians(functions, x)
    benchmark.extra_info.update(usual=usual / dense, shifted=shifted / dense)
    print(
        f"\n{channels} channels, {size}x{size}: XLA's depthwise {usual / dense:.2f}, "
        f"shift-multiply-add {shifted / dense:.2f} of the dense layer's time; "
        f"{usual / shifted:.1f} times faster"
    )
