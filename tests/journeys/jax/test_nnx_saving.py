"""Saving and loading of compressed NNX models, by rankfold and by Orbax."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rankfold as rf

X = np.random.default_rng(1).standard_normal((2, 11)).astype(np.float32)


def sequence(seed: int = 0, dtype: Any = jnp.float32, width: int = 7) -> nnx.Module:
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(
        nnx.Linear(11, width, param_dtype=dtype, rngs=rngs),
        nnx.relu,
        nnx.Linear(width, 5, rngs=rngs),
    )


class Noisy(nnx.Module):
    """Batch statistics and keys of random numbers."""

    def __init__(self, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.fc = nnx.Linear(11, 7, rngs=rngs)
        self.norm = nnx.BatchNorm(7, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.drop(self.norm(self.fc(x)))


class Shared(nnx.Module):
    def __init__(self, seed: int = 0) -> None:
        layer = nnx.Linear(11, 11, rngs=nnx.Rngs(seed))
        self.a, self.b = layer, nnx.List([layer])

    def __call__(self, x: Any) -> Any:
        return self.b[0](self.a(x))


class Positions(nnx.Module):
    """An array that is no Variable."""

    def __init__(self, seed: int = 0) -> None:
        self.fc = nnx.Linear(11, 7, rngs=nnx.Rngs(seed))
        self.positions = nnx.data(jnp.arange(7.0) + seed)

    def __call__(self, x: Any) -> Any:
        return self.fc(x) + self.positions


class Counting(nnx.Module):
    """A Variable that is a number."""

    def __init__(self, seed: int = 0) -> None:
        self.fc = nnx.Linear(11, 7, rngs=nnx.Rngs(seed))
        self.steps = nnx.Variable(jnp.asarray(seed))

    def __call__(self, x: Any) -> Any:
        return self.fc(x) + self.steps[...]


class Stacked(nnx.Module):
    def __init__(self, seed: int = 0) -> None:
        keys = jax.random.split(jax.random.key(seed), 3)
        self.layers = nnx.vmap(lambda key: nnx.Linear(11, 11, rngs=nnx.Rngs(key)))(keys)

    def __call__(self, x: Any) -> Any:
        return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            x, self.layers
        )


class Table(nnx.Module):
    def __init__(self, seed: int = 0) -> None:
        self.table = nnx.Embed(13, 11, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(seed))
        self.conv = nnx.Conv(11, 7, 3, rngs=nnx.Rngs(seed))

    def __call__(self, x: Any) -> Any:
        return self.conv(self.table(jnp.arange(4)) + x[:, None])


MODELS: dict[str, Callable[..., nnx.Module]] = {
    "sequence": sequence,
    "bfloat16": lambda seed=0: sequence(seed, jnp.bfloat16),
    "noisy": Noisy,
    "shared": Shared,
    "positions": Positions,
    "counting": Counting,
    "stacked": Stacked,
    "table": Table,
}


@cache
def compressed(name: str, methods: tuple[str, ...] | None) -> rf.Compressed:
    return rf.compress(MODELS[name](), rf.Ranks(2), inputs=X, methods=methods)


def saved(name: str, tmp_path: Path, methods: tuple[str, ...] | None = None) -> rf.Compressed:
    small = compressed(name, methods)
    small.save(tmp_path / "saved")
    return small


def raw(model: nnx.Module) -> list[Any]:
    leaves = jax.tree.leaves(nnx.state(model))
    return [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in leaves]


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def same(a: nnx.Module, b: nnx.Module) -> bool:
    pairs = list(zip(raw(a), raw(b), strict=True))
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_model_gets_every_number_that_was_saved(name: str, tmp_path: Path) -> None:
    small = saved(name, tmp_path)
    assert same(rf.load(MODELS[name](1), tmp_path / "saved"), small.model)


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_gives_the_same_outputs_bit_for_bit(name: str, tmp_path: Path) -> None:
    small = saved(name, tmp_path)
    loaded = rf.load(MODELS[name](1), tmp_path / "saved")
    assert np.array_equal(loaded(X), small.model(X))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_shapes_alone_is_filled(name: str, tmp_path: Path) -> None:
    small = saved(name, tmp_path)
    loaded = rf.load(nnx.eval_shape(MODELS[name]), tmp_path / "saved")
    assert same(loaded, small.model)


@pytest.mark.parametrize("name", ["sequence", "noisy", "shared"])
def test_the_fresh_model_is_not_modified(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    fresh = MODELS[name](1)
    rf.load(fresh, tmp_path / "saved")
    assert same(fresh, MODELS[name](1))
    assert nnx.graphdef(fresh) == nnx.graphdef(MODELS[name](1))


def test_a_shared_layer_is_loaded_as_one(tmp_path: Path) -> None:
    saved("shared", tmp_path)
    loaded = rf.load(Shared(1), tmp_path / "saved")
    assert loaded.a is loaded.b[0]


def test_a_loaded_model_can_be_trained_on(tmp_path: Path) -> None:
    saved("noisy", tmp_path)
    loaded = rf.load(Noisy(1), tmp_path / "saved")
    grads = nnx.grad(lambda m: (m(X) ** 2).sum())(loaded)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("method", ["tucker2", "cp", "channel_svd"])
def test_every_method_is_rebuilt_from_the_plan(method: str, tmp_path: Path) -> None:
    small = saved("table", tmp_path, methods=("svd", method))
    assert small.plan["conv"].method == method
    assert same(rf.load(Table(1), tmp_path / "saved"), small.model)


def test_a_model_that_is_one_layer_is_saved_and_loaded(tmp_path: Path) -> None:
    small = rf.compress(nnx.Linear(11, 7, rngs=nnx.Rngs(0)), rf.Ranks(2))
    small.save(tmp_path / "saved")
    loaded = rf.load(nnx.Linear(11, 7, rngs=nnx.Rngs(1)), tmp_path / "saved")
    assert np.array_equal(loaded(X), small.model(X))


FRESH: dict[str, tuple[Callable[[], nnx.Module], str]] = {
    "other width": (lambda: sequence(1, width=9), "layer 'layers.0' is Linear 11→9"),
    "other dtype": (lambda: sequence(1, jnp.float16), "make the model of that shape and dtype"),
    "fewer layers": (
        lambda: nnx.Sequential(nnx.Linear(11, 7, rngs=nnx.Rngs(0))),
        "is not in the model",
    ),
    "more layers": (
        lambda: nnx.Sequential(*sequence(1).layers, nnx.Linear(5, 3, rngs=nnx.Rngs(0))),
        "does not fit the model",
    ),
}


@pytest.mark.parametrize("case", FRESH)
def test_a_fresh_model_that_does_not_fit_is_an_error(case: str, tmp_path: Path) -> None:
    saved("sequence", tmp_path)
    make, message = FRESH[case]
    with pytest.raises(rf.RankfoldError, match=message):
        rf.load(make(), tmp_path / "saved")


@pytest.mark.parametrize("case", FRESH)
def test_a_fresh_model_that_does_not_fit_stays_as_it_was(case: str, tmp_path: Path) -> None:
    saved("sequence", tmp_path)
    fresh = FRESH[case][0]()
    with pytest.raises(rf.RankfoldError):
        rf.load(fresh, tmp_path / "saved")
    assert same(fresh, FRESH[case][0]())


def test_a_model_of_shapes_alone_cannot_be_saved(tmp_path: Path) -> None:
    small = rf.compress(nnx.eval_shape(sequence), rf.Ranks(2), exclude="*")
    with pytest.raises(rf.RankfoldError, match="only a shape"):
        small.save(tmp_path / "saved")


@pytest.mark.parametrize("name", ["sequence", "noisy", "stacked"])
def test_orbax_restores_the_state_of_the_compressed_model(name: str, tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint")
    small = rf.compress(MODELS[name](), rf.Ranks(2), inputs=X)
    pure = nnx.to_pure_dict(nnx.state(small.model, nnx.Param))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", pure)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), pure)
        restored = checkpointer.restore(tmp_path / "orbax", abstract)
    fresh = rf.apply(MODELS[name](1), small.plan).model
    nnx.update(fresh, restored)
    wanted = jax.tree.leaves(nnx.state(small.model, nnx.Param))
    found = jax.tree.leaves(nnx.state(fresh, nnx.Param))
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
