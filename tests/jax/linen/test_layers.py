"""Stock Linen layers as forms, and layers made of forms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import rankfold as rf
from rankfold.errors import Refused
from rankfold_jax.layouts.conv import ConvForm, TransposedForm
from rankfold_jax.layouts.dense import DenseForm, EinsumForm, EmbedForm
from rankfold_jax.linen.layers import (
    StageSpec,
    form_of,
    geometry,
    in_double,
    make,
    shape_of,
    unboxed,
)


def x_of(*shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(1).standard_normal(shape, np.float32))


def test_what_a_layer_computes_with_is_forwarded() -> None:
    def dot(*args: Any, **kwargs: Any) -> Any:
        return lax.dot_general(*args, **kwargs)

    module, x = nn.Dense(5, dtype=jnp.bfloat16, dot_general=dot), x_of(2, 7)
    model = module.bind(module.init(jax.random.key(0), x))
    small = rf.compress(model, rf.Ranks(2), inputs=x).model
    assert small(x).dtype == jnp.bfloat16
    seen = []

    def note(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        seen.append(context.module)
        return function(*args, **kwargs)

    with nn.intercept_methods(note):
        small(x)
    stages = [m for m in seen if m.name in ("lr0", "lr1")]
    assert [m.dot_general for m in stages] == [dot, dot]


@pytest.mark.parametrize(
    ("module", "kernel", "expected"),
    [
        (nn.Dense(7), (5, 7), DenseForm((5,), (7,))),
        (nn.Embed(11, 4), (11, 4), EmbedForm(11, 4)),
        (
            nn.DenseGeneral((3, 4), axis=(-2, -1), batch_dims=(0,)),
            (2, 5, 6, 3, 4),
            DenseForm((5, 6), (3, 4), (-2, -1), (2,), general=True),
        ),
        (
            nn.Conv(8, (3,), 2, feature_group_count=2),
            (3, 3, 8),
            ConvForm((3,), 6, 8, (2,), "SAME", (1,), 2, input_dilation=(1,)),
        ),
        (
            nn.ConvTranspose(8, (3,), transpose_kernel=True),
            (3, 8, 6),
            TransposedForm((3,), 6, 8, (1,), "SAME", (1,), True),
        ),
    ],
)
def test_the_form_is_that_of_the_fields_and_the_kernel(
    module: nn.Module, kernel: tuple[int, ...], expected: Any
) -> None:
    assert form_of(module, type(module), kernel, None, None) == expected


def test_the_text_of_an_einsum_comes_with_the_call_and_others_are_refused() -> None:
    einsum = nn.Einsum((5, 7))
    assert form_of(einsum, nn.Einsum, (5, 7), (7,), "b i, i o -> b o") == EinsumForm(
        "bi,io->bo", (5, 7), (7,)
    )
    with pytest.raises(Refused, match="not known"):
        form_of(einsum, nn.Einsum, (5, 7), None, None)
    with pytest.raises(Refused, match="masked"):
        form_of(nn.Conv(6, (1,), mask=jnp.ones((1, 6, 6))), nn.Conv, (1, 6, 6), None, None)
    with pytest.raises(Refused, match="not shared"):
        form_of(nn.ConvLocal(6, (2,)), nn.ConvLocal, (4, 10, 6), None, None)


def test_a_layer_made_of_a_form_has_that_form_and_its_box() -> None:
    box = nn.Partitioned(None, ("in", None))
    spec = StageSpec(DenseForm((5,), (7,)), use_bias=True, kernel_box=box)
    layer = make(spec, nn.Dense(3, dtype=jnp.bfloat16), None)
    params = jax.eval_shape(layer.init, jax.random.key(0), x_of(2, 5))["params"]
    assert params["kernel"].names == ("in", None)
    assert (shape_of(params["kernel"]), shape_of(params["bias"])) == ((5, 7), (7,))
    assert unboxed(params["kernel"]).shape == (5, 7)
    assert layer.dtype == jnp.bfloat16
    double = in_double(layer)
    assert (double.dtype, double.param_dtype) == (None, jnp.float64)


def test_geometry_is_told_in_words_without_options() -> None:
    words = dict(geometry(nn.Conv(8, [3], strides=2, dtype=jnp.bfloat16), nn.Conv))
    assert (words["kernel_size"], words["strides"]) == ("[3]", "2")
    assert not {"dtype", "name", "parent", "conv_general_dilated", "kernel_init"} & words.keys()
    hash(geometry(nn.Conv(8, [3]), nn.Conv))
