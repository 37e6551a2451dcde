"""Stock NNX layers whose numbers NumPy draws, and the chains in their place."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from hypothesis import HealthCheck, settings

import rankfold as rf

METHODS = ("svd", "channel_svd", "spatial_svd", "tucker2", "cp", "cp3")
ROUNDING = 5e-6


def drawn(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def initial(key: Any, shape: tuple[int, ...], dtype: Any, *_: Any) -> jax.Array:
    """Numbers of a kernel that are not drawn by JAX, which would compile that for each shape."""
    return jax.device_put(normal(*shape, dtype=dtype))


def filled(layer: Any) -> Any:
    """The layer with a bias that is not zero."""
    if getattr(layer, "bias", None) is not None:
        layer.bias[...] = jax.device_put(normal(*layer.bias.shape, dtype=layer.bias.dtype))
    return layer


def off(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compressed(layer: Any, policy: Any, **options: Any) -> tuple[Any, Any, rf.LayerPlan]:
    """The model, its one layer and the plan for it."""
    small = rf.compress(nnx.Sequential(layer), policy, **options)
    return small.model, small.model.layers[0], small.plan["layers.0"]


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Linear": (lambda **o: nnx.Linear(11, 7, **o), (2, 11)),
    "LinearGeneral": (lambda **o: nnx.LinearGeneral(11, (7, 3), **o), (2, 11)),
    "Einsum": (lambda **o: nnx.Einsum("bi,io->bo", (11, 7), (7,), **o), (2, 11)),
    "Conv": (lambda **o: nnx.Conv(5, 7, (3, 2), **o), (2, 9, 8, 5)),
    "ConvTranspose": (lambda **o: nnx.ConvTranspose(5, 7, (3, 2), (2, 3), **o), (2, 9, 8, 5)),
}


FIRST = ["svd", "channel_svd"]
