"""The replacement of an NNX layer tells what is known of its arrays, and names what is not."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rankfold as rf

X = np.random.default_rng(1).standard_normal((3, 11)).astype(np.float32)


def replaced(layer: nnx.Module) -> Any:
    return rf.compress(nnx.Sequential(layer), rf.Ranks(2), methods=("svd",)).model.layers[0]


def test_shape_and_dtype_are_those_of_the_layer() -> None:
    layer = nnx.Conv(11, 7, (1, 1), rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    kernel = replaced(layer).kernel
    for name in ("shape", "dtype", "ndim", "size"):
        assert getattr(kernel, name) == getattr(layer.kernel[...], name)
    table = replaced(nnx.Embed(13, 7, rngs=nnx.Rngs(0))).embedding
    assert table.shape == (13, 7)


def test_the_dtype_is_that_of_the_stages_now() -> None:
    chain = replaced(nnx.Linear(11, 7, rngs=nnx.Rngs(0)))
    nnx.update(chain, jax.tree.map(lambda x: x.astype(jnp.float16), nnx.state(chain)))
    assert chain.kernel.dtype == jnp.float16


def test_the_bias_is_that_of_the_last_stage() -> None:
    chain = replaced(nnx.Linear(11, 7, rngs=nnx.Rngs(0)))
    assert chain.bias is chain.layers[1].bias
    assert replaced(nnx.Linear(11, 7, use_bias=False, rngs=nnx.Rngs(0))).bias is None
    assert not hasattr(replaced(nnx.Embed(13, 7, rngs=nnx.Rngs(0))), "kernel")


@pytest.mark.parametrize(
    "use",
    [
        lambda kernel: X @ kernel,
        lambda kernel: jnp.asarray(X) @ kernel,
        lambda kernel: jnp.asarray(kernel),
        lambda kernel: np.asarray(kernel),
        lambda kernel: kernel[...],
        lambda kernel: kernel.get_value(),
        lambda kernel: 2 * kernel,
        lambda kernel: kernel.T,
        list,
    ],
)
def test_whatever_needs_values_is_an_error_that_names_the_kernel(use: Any) -> None:
    kernel = replaced(nnx.Linear(11, 7, rngs=nnx.Rngs(0))).kernel
    with pytest.raises(rf.RankfoldError, match=r"the kernel \(11, 7\) of a compressed layer"):
        use(kernel)


def test_it_is_there_in_copies_and_within_transforms() -> None:
    chain = replaced(nnx.Linear(11, 7, rngs=nnx.Rngs(0)))
    for copied in (nnx.clone(chain), copy.deepcopy(chain), nnx.merge(*nnx.split(chain))):
        assert copied.kernel.shape == (11, 7)
    assert copy.copy(chain.kernel).shape == (11, 7)
    shape = nnx.jit(lambda layer, x: layer(x) + layer.kernel.shape[0])(chain, X)
    np.testing.assert_allclose(shape, chain(X) + 11, rtol=1e-5)


def test_a_stack_does_not_tell_its_shape() -> None:
    class Stacked(nnx.Module):
        def __init__(self) -> None:
            make = nnx.vmap(lambda key: nnx.Linear(11, 11, rngs=nnx.Rngs(key)))
            self.fc = make(jax.random.split(jax.random.key(0), 3))

        def __call__(self, x: Any) -> Any:
            return nnx.vmap(lambda fc, x: fc(x) * fc.kernel.shape[0], in_axes=(0, None))(self.fc, x)

    plan = rf.compress(Stacked(), rf.Ranks(2), inputs=X).plan
    assert plan["fc"].reason.startswith("once it is replaced the model fails with AttributeError")
