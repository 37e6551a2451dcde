from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState

import rankfold as rf


def x_of(*shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(1).standard_normal(shape, np.float32))


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        for _ in range(2):
            x = x + nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.Dropout(0.3, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(5)(x)


class UNet(nn.Module):
    def setup(self) -> None:
        self.down = nn.Conv(6, (3, 3), strides=2)
        self.middle = [nn.remat(nn.Conv)(6, (3, 3)), nn.Conv(6, (3, 3), padding="CIRCULAR")]
        self.up = nn.ConvTranspose(4, (2, 2), strides=(2, 2))
        self.out = nn.Conv(2, (1, 1))

    def encode(self, x: jax.Array) -> jax.Array:
        x = nn.relu(self.down(x))
        for layer in self.middle:
            x = nn.relu(layer(x))
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(jnp.concatenate([x, self.up(self.encode(x))], -1))


class LSTM(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.RNN(nn.GRUCell(4))(nn.RNN(nn.LSTMCell(6))(x)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(6, use_bias=False)(nn.gelu(nn.Dense(10)(x))), None


class Scanned(nn.Module):
    """A language model: scanned and rematerialised blocks, tied embedding."""

    axis: int = 0

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = nn.Embed(11, 6)
        scanned = nn.scan(
            nn.remat(Block),
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=4,
        )
        x, _ = scanned()(embed(ids), None)
        return embed.attend(nn.Dense(6)(x))


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        members = nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=3,
        )
        shared = nn.Dense(7)
        return shared(nn.jit(nn.Dense)(7)(shared(members(7)(x))))


MODELS: dict[str, tuple[nn.Module, jax.Array]] = {
    "ResNet": (ResNet(), x_of(2, 8, 8, 3)),
    "UNet": (UNet(), x_of(2, 8, 8, 3)),
    "LSTM": (LSTM(), x_of(2, 4, 5)),
    "transformer, scanned": (Scanned(), jnp.arange(8).reshape(2, 4)),
    "transformer, scanned along axis 1": (Scanned(axis=1), jnp.arange(8).reshape(2, 4)),
    "ensemble": (Ensemble(), x_of(2, 7)),
}


def drawn(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Numbers of a variable that are not drawn by JAX, which would compile that for each model."""
    name = path[-1].key
    rng = np.random.default_rng(list(jax.tree_util.keystr(path).encode()))
    numbers = rng.standard_normal(shape.shape)
    if name in ("scale", "var"):
        numbers = np.exp(0.1 * numbers)
    else:
        numbers *= 0.3 if name in ("kernel", "embedding") else 0.1
    return jax.device_put(numbers.astype(shape.dtype))


@functools.cache
def bound(name: str) -> tuple[nn.Module, jax.Array]:
    module, x = MODELS[name]
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return module.bind(jax.tree_util.tree_map_with_path(drawn, shapes)), x


def compiled(model: nn.Module, x: jax.Array) -> jax.Array:
    """The output, by one compilation in place of one for each operation."""
    module, variables = model.unbind()
    return jax.jit(module.apply)(variables, x)


@functools.cache
def halved(name: str) -> rf.Compressed:
    model, x = bound(name)
    return rf.compress(model, rf.Ranks(2), inputs=x, methods=("svd", "tucker2"))


def apply_of(name: str) -> tuple[nn.Module, Any, jax.Array]:
    module, variables = halved(name).model.unbind()
    return module, variables, bound(name)[1]


@pytest.mark.parametrize("name", list(MODELS))
def test_full_rank_reproduces_the_model(name: str, distance: Any) -> None:
    model, x = bound(name)
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    assert all(layer.method for layer in small.plan.layers), str(small.plan)
    assert distance(compiled(small.model, x), compiled(model, x)) < 1e-5


@pytest.mark.parametrize("name", [name for name in MODELS if "transformer" not in name])
def test_the_predicted_cost_is_that_of_the_result(name: str) -> None:
    small, x = halved(name), bound(name)[1]
    again = rf.plan(small.model, rf.Ranks(1), inputs=x)
    assert small.plan.macs[1] == again.macs[0]
    _, variables = small.model.unbind()
    held = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert small.plan.model_params[1] == held


@pytest.mark.parametrize("name", list(MODELS))
def test_init_gives_the_compressed_tree(name: str) -> None:
    module, variables, x = apply_of(name)
    made = jax.eval_shape(module.init, jax.random.key(0), x)
    shapes = functools.partial(jax.tree.map, lambda a: (a.shape, a.dtype))
    assert shapes(made) == shapes(variables)


@pytest.mark.parametrize("name", [name for name in MODELS if "axis" not in name])
def test_compiled_equals_eager(name: str) -> None:
    module, variables, x = apply_of(name)
    expected = halved(name).model(x)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if "axis" not in name])
def test_the_result_trains(name: str) -> None:
    module, variables, x = apply_of(name)
    others = {k: v for k, v in variables.items() if k != "params"}
    state = TrainState.create(apply_fn=module.apply, params=variables["params"], tx=optax.sgd(1e-2))

    @jax.jit
    def step(state: TrainState) -> tuple[TrainState, jax.Array]:
        def loss(params: Any) -> jax.Array:
            return (state.apply_fn({"params": params, **others}, x) ** 2).mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    losses = []
    for _ in range(6):
        state, value = step(state)
        losses.append(float(value))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("axis", [0, 1])
def test_the_predicted_cost_of_scanned_layers_is_that_of_the_result(axis: int) -> None:
    model, x = bound(f"transformer, scanned{' along axis 1' * axis}")
    small = rf.compress(model, rf.Ranks(2), inputs=x, exclude="Embed_0")
    assert small.plan.macs[1] == rf.plan(small.model, rf.Ranks(1), inputs=x).macs[0]
    hidden, positions = 6 * 6 * 4 + 6 * 10 * 2, 8
    attended = positions * 11 * 6
    assert small.plan.macs[0] == 4 * positions * hidden + positions * 36 + attended


def test_batch_statistics_and_dropout_work_in_training() -> None:
    module, variables, x = apply_of("ResNet")
    output, changed = module.apply(
        variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
    )
    assert output.shape == (2, 5)
    assert not np.array_equal(
        changed["batch_stats"]["BatchNorm_0"]["mean"],
        variables["batch_stats"]["BatchNorm_0"]["mean"],
    )


def test_flags_among_the_inputs_are_passed_on() -> None:
    model, x = bound("ResNet")
    trained = rf.plan(model, rf.Ranks(2), inputs={"x": x, "train": True})
    assert trained.macs == rf.plan(model, rf.Ranks(2), inputs=(x, False)).macs


@pytest.mark.parametrize(
    "method",
    ["encode", UNet.encode, lambda module, x: module.encode(x)],
    ids=["name", "method", "function"],
)
def test_other_methods_of_the_module_are_compressed_too(method: Any) -> None:
    module, variables, x = apply_of("UNet")
    model, _ = bound("UNet")
    encoded = module.apply(variables, x, method=method)
    assert encoded.shape == model.encode(x).shape
    assert not np.allclose(encoded, model.encode(x))


def test_intermediates_and_tables_work() -> None:
    module, variables, x = apply_of("UNet")
    _, seen = module.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
    assert "lr0" in seen["intermediates"]["down"]
    assert "lr0" in module.tabulate(jax.random.key(0), x, console_kwargs={"width": 200})


def test_the_class_of_the_user_is_unmodified() -> None:
    module, _, x = apply_of("UNet")
    assert isinstance(module, UNet)
    fresh = UNet().init(jax.random.key(0), x)
    assert set(fresh["params"]["down"]) == {"kernel", "bias"}


@functools.partial(jax.jit, static_argnums=0)
def run(module: nn.Module, variables: Any, x: jax.Array) -> jax.Array:
    return module.apply(variables, x)


def test_a_compressed_module_is_another_static_argument() -> None:
    model, x = bound("ensemble")
    module, variables = model.unbind()
    run(module, variables, x)
    small, held, _ = apply_of("ensemble")
    assert small != module
    assert np.allclose(run(small, held, x), halved("ensemble").model(x), atol=1e-5)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_compressed_module_can_be_copied(copied: Any) -> None:
    module, variables, x = apply_of("UNet")
    other = copied(module)
    assert other == module
    assert hash(other) == hash(module)
    assert np.array_equal(other.apply(variables, x), module.apply(variables, x))


class Wrapper(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(self.inner(x))


def test_a_compressed_module_is_part_of_a_bigger_one() -> None:
    module, variables, x = apply_of("UNet")
    wrapper = Wrapper(module)
    made = jax.jit(wrapper.init)(jax.random.key(0), x)
    assert set(made["params"]["inner"]["down"]) == {"lr0", "lr1", "lr2"}
    assert set(made["params"]["Dense_0"]) == {"kernel", "bias"}
    assert all(np.any(stage["kernel"]) for stage in made["params"]["inner"]["down"].values())
    made["params"]["inner"] = variables["params"]
    assert jax.jit(wrapper.apply)(made, x).shape == (2, 8, 8, 3)


def test_a_compressed_model_is_compressed_again(distance: Any) -> None:
    model, x = bound("transformer, scanned")
    once = rf.compress(model, rf.Ranks("full"), inputs=x)
    twice = rf.compress(once.model, rf.Ranks("full"), inputs=x)
    assert any(layer.path.endswith("lr0") for layer in twice.plan.replaced)
    assert distance(compiled(twice.model, x), compiled(model, x)) < 1e-4


def test_a_model_that_is_one_layer_is_compressed(distance: Any) -> None:
    module, x = nn.Dense(5), x_of(2, 7)
    model = module.bind(module.init(jax.random.key(0), x))
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    assert distance(small.model(x), model(x)) < 1e-5
