"""Layers that must be left alone, each with its reason; and those that look so but need not be."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rankfold as rf

X = np.random.default_rng(1).standard_normal((2, 11)).astype(np.float32)


def linear(inputs: int = 11, outputs: int = 7, **options: Any) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options)


class Holder(nnx.Module):
    """A model that does something with its one layer."""

    def __init__(self, use: Callable[[Any, Any], Any], fc: nnx.Module | None = None) -> None:
        self.fc = linear() if fc is None else fc
        self.use = use

    def __call__(self, x: Any) -> Any:
        return self.use(self.fc, x)


class Scaled(nnx.Linear):
    def __call__(self, x: Any, out_sharding: Any = None) -> Any:
        return 2 * super().__call__(x)


class WithScale(nnx.Linear):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale = nnx.Param(jnp.ones(7))


class Twice(nnx.Linear):
    def twice(self, x: Any) -> Any:
        return 2 * self(x)


class Bare(nnx.Module):
    def __init__(self) -> None:
        self.table = nnx.Param(jnp.ones((11, 7)))

    def __call__(self, x: Any) -> Any:
        return x @ self.table[...]


class Tied(nnx.Module):
    def __init__(self) -> None:
        self.fc, self.other = linear(11, 11), linear(11, 11)
        self.other.kernel = self.fc.kernel

    def __call__(self, x: Any) -> Any:
        return self.other(self.fc(x))


class TiedBias(nnx.Module):
    def __init__(self) -> None:
        self.fc = linear()
        self.further = nnx.List([self.fc.bias])

    def __call__(self, x: Any) -> Any:
        return self.fc(x) + self.further[0][...]


class TiedTable(nnx.Module):
    def __init__(self) -> None:
        self.fc, self.head = nnx.Embed(13, 6, rngs=nnx.Rngs(0)), linear(13, 6)
        self.head.kernel = self.fc.embedding

    def __call__(self, x: Any) -> Any:
        return self.fc(jnp.arange(3)) @ self.head.kernel[...].T


def masked() -> nnx.Module:
    mask = nnx.data(jnp.ones((3, 11, 7)))
    return nnx.Conv(11, 7, 3, mask=mask, rngs=nnx.Rngs(0))


def with_values(value: Any) -> nnx.Module:
    layer = linear()
    layer.kernel.set_raw_value(value)
    return layer


def kept(**metadata: Any) -> Callable[[], nnx.Module]:
    return lambda: Holder(lambda fc, x: fc(x), linear(kernel_metadata=metadata))


LEFT: dict[str, tuple[Callable[[], nnx.Module], str, str]] = {
    "kernel read": (lambda: Holder(lambda fc, x: x @ fc.kernel[...]), "fc", "read from outside"),
    "bias read": (lambda: Holder(lambda fc, x: fc(x) + fc.bias[...]), "fc", "bias is read"),
    "product with the state": (
        lambda: Holder(lambda fc, x: x @ nnx.state(fc)["kernel"][...]),
        "fc",
        "",
    ),
    "read by state": (
        lambda: Holder(lambda fc, x: fc(x) + jax.tree.leaves(nnx.state(fc))[-1].sum()),
        "fc",
        "goes into a reduce_sum",
    ),
    "further method": (
        lambda: Holder(lambda fc, x: fc.twice(x), Twice(11, 7, rngs=nnx.Rngs(0))),
        "fc",
        "",
    ),
    "call of its own": (
        lambda: Holder(lambda fc, x: fc(x), Scaled(11, 7, rngs=nnx.Rngs(0))),
        "fc",
        "call of its own",
    ),
    "further state": (
        lambda: Holder(lambda fc, x: fc(x), WithScale(11, 7, rngs=nnx.Rngs(0))),
        "fc",
        "holds scale",
    ),
    "bare matrix": (lambda: Holder(lambda fc, x: fc(x), Bare()), "fc", "no rule reads a Bare"),
    "LoRALinear": (
        lambda: Holder(lambda fc, x: fc(x), nnx.LoRALinear(11, 7, lora_rank=2, rngs=nnx.Rngs(0))),
        "fc",
        "call of its own",
    ),
    "WeightNorm": (
        lambda: Holder(lambda fc, x: fc(x), nnx.WeightNorm(linear(), rngs=nnx.Rngs(0))),
        "fc.layer_instance",
        "WeightNorm",
    ),
    "SpectralNorm": (
        lambda: Holder(
            lambda fc, x: fc(x, update_stats=False), nnx.SpectralNorm(linear(), rngs=nnx.Rngs(0))
        ),
        "fc.layer_instance",
        "SpectralNorm",
    ),
    "tied": (Tied, "fc", "tied: its kernel is also 'other.kernel'"),
    "tied bias": (TiedBias, "fc", "tied: its bias is also 'further.0'"),
    "tied table": (TiedTable, "fc", "tied: its embedding is also 'head.kernel'"),
    "masked": (lambda: Holder(lambda fc, x: fc(x), masked()), "fc", "mask"),
    "circular transposed": (
        lambda: Holder(
            lambda fc, x: fc(x),
            nnx.ConvTranspose(11, 7, 3, 2, padding="CIRCULAR", rngs=nnx.Rngs(0)),
        ),
        "fc",
        "circular",
    ),
    "integers": (
        lambda: Holder(lambda fc, x: fc(x), with_values(jnp.ones((11, 7), jnp.int8))),
        "fc",
        "int8",
    ),
    "zeros": (lambda: Holder(lambda fc, x: fc(x), with_values(jnp.zeros((11, 7)))), "fc", "zero"),
    "nan": (
        lambda: Holder(lambda fc, x: fc(x), with_values(jnp.full((11, 7), jnp.nan))),
        "fc",
        "NaN",
    ),
    "einsum without a product": (
        lambda: Holder(lambda fc, x: fc(x), nnx.Einsum("bi,bi->bi", (2, 11), rngs=nnx.Rngs(0))),
        "fc",
        "no product of matrices",
    ),
    "einsum that repeats an index": (
        lambda: Holder(lambda fc, x: fc(x), nnx.Einsum("bi,ioo->bo", (11, 7, 7), rngs=nnx.Rngs(0))),
        "fc",
        "repeats an index",
    ),
    "einsum that sums the kernel": (
        lambda: Holder(lambda fc, x: fc(x), nnx.Einsum("bi,iok->bo", (11, 7, 3), rngs=nnx.Rngs(0))),
        "fc",
        "sums the kernel",
    ),
    "hijax": (kept(hijax=True), "fc", ""),
    "ref": (kept(ref=True), "fc", ""),
    "stack of tables": (
        lambda: Holder(
            lambda fc, x: nnx.vmap(lambda m: m(jnp.arange(3)))(fc),
            nnx.vmap(lambda k: nnx.Embed(13, 6, rngs=nnx.Rngs(k)))(
                jax.random.split(jax.random.key(0), 3)
            ),
        ),
        "fc",
        "stack of 3 tables",
    ),
    "4-d kernel": (
        lambda: Holder(lambda fc, x: x, nnx.Conv(3, 5, (2, 1, 2, 1), rngs=nnx.Rngs(0))),
        "fc",
        "4 spatial axes",
    ),
    "weights changed before use": (
        lambda: Holder(
            lambda fc, x: nnx.merge(nnx.graphdef(fc), jax.tree.map(jnp.tanh, nnx.state(fc)))(x)
        ),
        "fc",
        "goes into a tanh",
    ),
}


@cache
def compressed(case: str) -> tuple[Any, rf.Compressed]:
    model = LEFT[case][0]()
    return model, rf.compress(model, rf.Ranks(2), inputs=X)


@pytest.mark.parametrize("case", LEFT)
def test_a_layer_is_left_alone_with_a_reason(case: str) -> None:
    _, path, reason = LEFT[case]
    plan = compressed(case)[1].plan[path]
    assert plan.method is None
    assert plan.reason
    assert reason in plan.reason


@pytest.mark.parametrize("case", LEFT)
def test_a_model_whose_layer_is_left_alone_still_runs_as_before(case: str) -> None:
    model, small = compressed(case)
    before, after = model(X), small.model(X)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def halves(layer: Any, x: Any) -> Any:
    return layer(x) * layer.out_features + layer.in_features


REPLACED: dict[str, Callable[[], nnx.Module]] = {
    "sizes read": lambda: Holder(halves),
    "dtype of the kernel read": lambda: Holder(lambda fc, x: fc(x.astype(fc.kernel.dtype))),
    "shape of the kernel read": lambda: Holder(lambda fc, x: fc(x) * fc.kernel.shape[0]),
    "bias asked for": lambda: Holder(lambda fc, x: fc(x) if fc.bias is not None else x),
    "no bias asked for": lambda: Holder(
        lambda fc, x: fc(x) if fc.bias is None else x, linear(use_bias=False)
    ),
    "options read": lambda: Holder(lambda fc, x: fc(x) if fc.use_bias and fc.dtype is None else x),
    "dtype read": lambda: Holder(lambda fc, x: fc(x.astype(fc.dtype)), linear(dtype=jnp.float32)),
    "param_dtype read": lambda: Holder(lambda fc, x: fc(x.astype(fc.param_dtype))),
    "precision read": lambda: Holder(lambda fc, x: fc(x) if fc.precision is None else x),
    "by keyword": lambda: Holder(lambda fc, x: fc(inputs=x)),
    "with a sharding": lambda: Holder(lambda fc, x: fc(x, out_sharding=None)),
    "strides read": lambda: Holder(
        lambda fc, x: fc(x)[:: fc.strides], nnx.Conv(11, 7, 3, rngs=nnx.Rngs(0))
    ),
    "kernel shape read": lambda: Holder(
        lambda fc, x: fc(x) + len(fc.kernel_shape), nnx.Conv(11, 7, 1, rngs=nnx.Rngs(0))
    ),
    "general sizes read": lambda: Holder(
        lambda fc, x: fc(x) * fc.batch_axis.get(0, 1),
        nnx.LinearGeneral(11, (7, 3), rngs=nnx.Rngs(0)),
    ),
    "below LoRA": lambda: Holder(
        lambda fc, x: fc(x), nnx.LoRA(11, 2, 7, base_module=linear(), rngs=nnx.Rngs(0))
    ),
    "docstring subclass": lambda: Holder(
        lambda fc, x: fc(x), type("Mine", (nnx.Linear,), {})(11, 7, rngs=nnx.Rngs(0))
    ),
    "jit inside": lambda: Holder(nnx.jit(lambda fc, x: fc(x))),
    "remat inside": lambda: Holder(nnx.remat(lambda fc, x: fc(x))),
    "called twice": lambda: Holder(lambda fc, x: fc(x) + fc(2 * x)),
    "in a cond": lambda: Holder(
        lambda fc, x: nnx.cond(x.sum() > 0, lambda m, x: m(x), lambda m, x: m(2 * x), fc, x)
    ),
    "in a loop": lambda: Holder(
        lambda fc, x: nnx.fori_loop(0, 3, lambda i, c: (c[0], c[0](c[1])), (fc, x))[1],
        linear(11, 11),
    ),
    "of numpy": lambda: Holder(lambda fc, x: fc(x), with_values(np.ones((11, 7), np.float32))),
    "with a Variable of a tree before it": lambda: Before({"p": jnp.ones(3), "q": jnp.ones(2)}),
    "with an empty Variable before it": lambda: Before(None),
    "with a number before it": lambda: Before(3),
    "with a key before it": lambda: Before(jax.random.key(0)),
    "in a dataclass": lambda: AsData(linear()),
}


class Before(nnx.Module):
    def __init__(self, value: Any) -> None:
        self.a = nnx.Variable(value)
        self.fc = linear()

    def __call__(self, x: Any) -> Any:
        return self.fc(x)


@dataclasses.dataclass
class AsData(nnx.Module):
    fc: nnx.Linear

    def __call__(self, x: Any) -> Any:
        return self.fc(x)


@pytest.mark.parametrize("case", REPLACED)
def test_a_layer_is_replaced_and_the_model_runs_as_before(case: str) -> None:
    model = REPLACED[case]()
    small = rf.compress(model, rf.Ranks("full"), inputs=X, methods=["svd", "channel_svd"])
    plan = next(layer for layer in small.plan.layers if layer.op != "LoRA")
    assert plan.method, plan.reason
    np.testing.assert_allclose(small.model(X), model(X), rtol=2e-4, atol=2e-5)
