from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx

import rankfold as rf

X = np.random.default_rng(1).standard_normal((2, 6, 6, 3)).astype(np.float32)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 7, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(self.dropout(x.mean((1, 2))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x))
        return nn.Dense(7)(nn.relu(x).mean((1, 2)))


def nnx_model(seed: int = 0) -> Net:
    model = Net(nnx.Rngs(seed))
    model.eval()
    return model


def linen_model(seed: int = 0) -> nn.Module:
    return LinenNet().bind(LinenNet().init(jax.random.key(seed), X))


MODELS = {"nnx": nnx_model, "linen": linen_model}


def abstract(framework: str) -> Any:
    """A model of shapes only."""
    if framework == "nnx":
        return nnx.eval_shape(nnx_model)
    return LinenNet().bind(jax.eval_shape(LinenNet().init, jax.random.key(0), X))


@pytest.fixture(params=list(MODELS))
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def small(framework: str) -> rf.Compressed:
    return rf.compress(MODELS[framework](), rf.Ranks(3), inputs=X)


def test_a_saved_model_is_loaded_into_a_fresh_one(
    framework: str, small: rf.Compressed, tmp_path: Path
) -> None:
    small.save(tmp_path / "small")
    loaded = rf.load(MODELS[framework](1), tmp_path / "small", inputs=X)
    assert np.array_equal(loaded(X), small.model(X))


def test_a_saved_model_is_loaded_into_one_of_shapes_only(
    framework: str, small: rf.Compressed, tmp_path: Path
) -> None:
    small.save(tmp_path / "small")
    loaded = rf.load(abstract(framework), tmp_path / "small", inputs=X)
    assert np.array_equal(loaded(X), small.model(X))


def test_saved_models_are_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    for framework, make in MODELS.items():
        small = rf.compress(make(), rf.Ranks(3), inputs=X)
        small.save(tmp_path / framework)
        np.save(tmp_path / f"{framework}.npy", small.model(X))
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import numpy as np
import rankfold as rf
from tests.jax.test_state_io import MODELS, X
folder = Path({str(tmp_path)!r})
for framework, make in MODELS.items():
    model = rf.load(make(5), folder / framework, inputs=X)
    np.testing.assert_allclose(model(X), np.load(folder / f"{{framework}}.npy"), rtol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_random_keys_and_statistics_are_saved(tmp_path: Path) -> None:
    model = nnx_model()
    model.train()
    model(X)
    small = rf.compress(model, rf.Ranks(3), inputs=X)
    small.save(tmp_path / "small")
    loaded = rf.load(nnx_model(1), tmp_path / "small")
    assert np.array_equal(loaded.norm.mean[...], model.norm.mean[...])
    keys = [jax.random.key_data(m.dropout.rngs.key[...]) for m in (loaded, model)]
    assert np.array_equal(*keys)


def test_weights_of_another_model_are_refused(
    framework: str, small: rf.Compressed, tmp_path: Path
) -> None:
    small.save(tmp_path / "small")
    other = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    with pytest.raises(rf.RankfoldError, match="is not in the model"):
        rf.load(nnx.Sequential(other), tmp_path / "small")


def test_a_truncated_file_is_refused(framework: str, small: rf.Compressed, tmp_path: Path) -> None:
    small.save(tmp_path / "small")
    file = tmp_path / "small" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(rf.RankfoldError, match="damaged"):
        rf.load(MODELS[framework](), tmp_path / "small", inputs=X)


def test_a_model_of_shapes_only_cannot_be_compressed(framework: str) -> None:
    plan = rf.plan(abstract(framework), rf.Ranks(3), inputs=X)
    assert not plan.replaced
    assert all("only a shape" in layer.reason for layer in plan.layers)


def test_orbax_restores_an_nnx_model_from_its_plan(tmp_path: Path) -> None:
    small = rf.compress(nnx_model(), rf.Ranks(3), inputs=X)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.to_pure_dict(nnx.state(small.model, nnx.Param)))
    fresh = rf.apply(nnx_model(1), small.plan).model
    wanted = nnx.to_pure_dict(nnx.state(fresh, nnx.Param))
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "state", wanted)
    state = nnx.state(fresh, nnx.Param)
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(fresh, state)
    assert np.array_equal(fresh(X), small.model(X))


def test_orbax_restores_linen_variables_from_init_alone(tmp_path: Path) -> None:
    module, variables = rf.compress(linen_model(), rf.Ranks(3), inputs=X).model.unbind()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "variables", variables)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros_like(X))
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "variables", shapes)
    assert np.array_equal(module.apply(restored, X), module.apply(variables, X))
