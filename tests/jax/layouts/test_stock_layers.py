"""Options and ways to multiply of stock layers, handed on to the stages of their chains."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax
from tests.jax.layouts.layers import FIRST, KINDS, compressed, normal, rngs

import rankfold as rf
from rankfold_jax.layouts.conv import ConvForm, TransposedForm
from rankfold_jax.layouts.dense import DenseForm, EinsumForm
from rankfold_jax.layouts.depthwise import depthwise_conv
from rankfold_jax.layouts.stacks import StackedAxes
from rankfold_jax.layouts.stock_layers import (
    arguments,
    conv_form,
    has_own_product,
    not_interpolated,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": jnp.float16, "preferred_element_type": jnp.float32},
        {"param_dtype": jnp.bfloat16, "dtype": jnp.float32},
    ],
    ids=["preferred", "param_dtype"],
)
def test_the_output_has_the_dtype_it_had(kind: str, options: dict[str, Any]) -> None:
    make, shape = KINDS[kind]
    layer, x = make(**options, rngs=rngs()), normal(*shape)
    model, _, plan = compressed(layer, rf.Ranks(2), methods=FIRST)
    assert plan.method in FIRST
    assert jax.eval_shape(model, x).dtype == jax.eval_shape(layer, x).dtype


def promote(*args: Any, **options: Any) -> Any:
    return nnx.nn.dtypes.promote_dtype(*args, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_computes_as_the_layer_did(kind: str) -> None:
    options = {"precision": lax.Precision.HIGHEST, "promote_dtype": promote}
    layer = KINDS[kind][0](**options, rngs=rngs())
    _, chain, _ = compressed(layer, rf.Ranks(2), methods=FIRST)
    for name, value in options.items():
        assert [getattr(stage, name) for stage in chain.layers] == [value, value]


def same_as(product: Any) -> Any:
    """A product as users write them: with no more arguments than are used."""

    def custom(*args: Any, **options: Any) -> Any:
        return product(*args, **options)

    return custom


CUSTOM = {
    "Linear": ("dot_general", same_as(lax.dot_general)),
    "LinearGeneral": ("dot_general", same_as(lax.dot_general)),
    "Einsum": ("einsum_op", same_as(jnp.einsum)),
    "Conv": ("conv_general_dilated", same_as(lax.conv_general_dilated)),
}


@pytest.mark.parametrize("kind", CUSTOM)
def test_a_custom_product_is_handed_on(kind: str) -> None:
    (make, shape), (name, product) = KINDS[kind], CUSTOM[kind]
    layer = make(**{name: product}, rngs=rngs())
    _, chain, plan = compressed(layer, rf.Ranks(2), inputs=normal(*shape), methods=FIRST)
    assert plan.method in FIRST
    assert {getattr(stage, name) for stage in chain.layers} == {product}


def test_a_way_to_multiply_of_jax_is_none_of_the_users() -> None:
    assert not has_own_product(nnx.Linear(3, 5, rngs=rngs()))
    assert not has_own_product(nnx.Conv(3, 5, 2, rngs=rngs()))
    assert has_own_product(nnx.Linear(3, 5, dot_general=same_as(lax.dot_general), rngs=rngs()))


def test_what_takes_no_interpolative_stages_has_a_reason() -> None:
    layer, form = nnx.Linear(3, 5, rngs=rngs()), DenseForm((3,), (5,))
    assert not_interpolated(layer, form, StackedAxes()) == ""
    assert "a stack" in not_interpolated(layer, form, StackedAxes((0,), (2,)))
    assert "an einsum" in not_interpolated(layer, EinsumForm("bi,io->bo", (3, 5)), StackedAxes())
    layer.dot_general = same_as(lax.dot_general)
    assert "a way of its own" in not_interpolated(layer, form, StackedAxes())


def test_a_depthwise_stage_is_computed_by_shifts_unless_the_layer_multiplies_itself() -> None:
    form = ConvForm((3,), 5, 5, (2,), "SAME", (1,), 5)
    assert form.depthwise
    layer = nnx.Conv(5, 7, 3, rngs=rngs())
    values = arguments(form, nnx.Conv, layer, bias=True)
    assert values["conv_general_dilated"] is depthwise_conv
    assert (values["kernel_size"], values["strides"], values["use_bias"]) == ((3,), (2,), True)
    layer.conv_general_dilated = product = same_as(lax.conv_general_dilated)
    assert arguments(form, nnx.Conv, layer, bias=True)["conv_general_dilated"] is product
    # another class has other operands
    assert "dot_general" not in arguments(DenseForm((5,), (7,)), nnx.Linear, layer, bias=False)


def test_forms_of_convolutions_have_their_geometry_in_full() -> None:
    layer = nnx.Conv(6, 4, (3, 2), 2, padding="same", feature_group_count=2, rngs=rngs())
    assert conv_form(layer, (3, 2), 6, 4, transposed=False) == ConvForm(
        (3, 2), 6, 4, (2, 2), "SAME", (1, 1), 2, input_dilation=(1, 1)
    )
    layer = nnx.ConvTranspose(6, 4, (3, 2), padding="valid", transpose_kernel=True, rngs=rngs())
    assert conv_form(layer, (3, 2), 6, 4, transposed=True) == TransposedForm(
        (3, 2), 6, 4, (1, 1), ((0, 0), (0, 0)), (1, 1), True
    )
