"""Orbax checkpoints: compressed as they lie there, and as the weights of a factory's model."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import rankfold as rf
from rankfold.checkpoints.reader import Checkpoint
from rankfold.cli import app
from rankfold.cli.weights import filled
from rankfold_jax.orbax_reader import OrbaxFolder

X = np.random.default_rng(1).standard_normal((2, 7, 7, 3)).astype(np.float32)
POLICY = rf.Ratio(0.5)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 13, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(13, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(13, 23, rngs=rngs), nnx.Linear(23, 17, rngs=rngs)])
        self.head = nnx.Linear(17, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.head(self.dropout(x))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(13, (3, 3))(x))
        return nn.Dense(5)(nn.relu(nn.Dense(23)(nn.relu(x).mean((1, 2)))))


def nnx_model(seed: int = 0) -> Net:
    model = Net(nnx.Rngs(seed))
    model.eval()
    return model


def linen_variables(seed: int = 0) -> Any:
    return LinenNet().init(jax.random.key(seed), X)


def linen_model(seed: int = 0) -> nn.Module:
    return LinenNet().bind(linen_variables(seed))


MAKE = {"nnx": nnx_model, "linen": linen_model}
STATES = {
    "nnx": lambda: nnx.state(nnx_model()),
    "nnx without generators": lambda: nnx.state(nnx_model(), (nnx.Param, nnx.BatchStat)),
    "nnx pure": lambda: nnx.to_pure_dict(nnx.state(nnx_model(), (nnx.Param, nnx.BatchStat))),
    "nnx in training": lambda: {
        "model": nnx.state(nnx_model()),
        "optimizer": {"mu": nnx.state(nnx_model(1), nnx.Param)},
    },
    "linen": linen_variables,
    "linen in training": lambda: {
        **linen_variables(),
        "step": 3,
        "opt_state": optax.adam(1e-3).init(linen_variables()["params"]),
    },
}


def saved(tree: Any, folder: Path, checkpointer: Any = ocp.StandardCheckpointer) -> Path:
    with checkpointer() as writer:
        writer.save(folder, tree)
    return folder


@pytest.mark.parametrize("state", STATES)
def test_a_checkpoint_is_compressed_as_the_live_model_is(state: str, tmp_path: Path) -> None:
    source = saved(STATES[state](), tmp_path / "orbax")
    make = MAKE[state.split()[0]]
    plan = rf.compress_checkpoint(source, tmp_path / "out", POLICY, methods=["svd", "tucker2"])
    assert len(plan.replaced) >= 2
    small = rf.load(make(5), tmp_path / "out", inputs=X)
    assert np.array_equal(small(X), rf.apply(make(), plan, inputs=X).model(X))


@pytest.mark.parametrize("state", STATES)
def test_a_factory_s_model_gets_the_weights_of_a_checkpoint(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(STATES[state](), tmp_path / "orbax", ocp.PyTreeCheckpointer)
    make = MAKE[state.split()[0]]
    module = types.ModuleType("orbax_models")
    vars(module)["make"] = lambda: make(5)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    arguments = [
        *("compress", "orbax_models:make", "--weights", "orbax", "-o", "out"),
        *("--policy", "ratio:0.5", "--inputs", "2,7,7,3"),
    ]
    app.app(arguments, standalone_mode=False)
    small = rf.load(make(6), tmp_path / "out", inputs=X)
    assert np.array_equal(small(X), rf.compress(make(), POLICY, inputs=X).model(X))


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    source = saved(linen_variables(), tmp_path / "orbax")
    with pytest.raises(rf.RankfoldError, match="orbax' does not fit the model: it lacks blocks"):
        filled(nnx_model(), source, None)


def test_every_kind_of_leaf_is_read_bit_for_bit(tmp_path: Path) -> None:
    tree = {
        "list": [{"kernel": jnp.arange(15.0).reshape(3, 5).astype(jnp.bfloat16)}, {"none": None}],
        "float8": jnp.arange(7.0).astype(jnp.float8_e4m3fn),
        "key": jax.random.key_data(jax.random.key(3)),
        "mask": np.array([True, False, True]),
        "number": 3,
        "empty": {},
    }
    stored = OrbaxFolder(saved(tree, tmp_path / "orbax"))
    entries = stored.header.entries
    kinds = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
    assert kinds == {
        "list.0.kernel": ("BF16", (3, 5)),
        "float8": ("F8_E4M3", (7,)),
        "key": ("U32", (2,)),
        "mask": ("BOOL", (3,)),
        "number": ("I64", ()),
    }
    leaves = {"list.0.kernel": tree["list"][0]["kernel"], **tree}
    for name, entry in entries.items():
        assert stored.data(entry).tobytes() == np.asarray(leaves[name]).tobytes()


def test_a_key_chooses_among_several_trees(tmp_path: Path) -> None:
    trees = {
        name: {"a": {"kernel": jnp.full((3, 5), x)}} for name, x in (("raw", 0.0), ("ema", 1.0))
    }
    source = saved({"both": trees}, tmp_path / "orbax")
    stored = Checkpoint(source, key="both/ema")
    assert list(stored.owner) == ["a.kernel"]
    assert np.array_equal(stored.array("a.kernel"), np.ones((3, 5)))
    with pytest.raises(rf.RankfoldError, match="has no 'both/mean', but 'both'"):
        Checkpoint(source, key="both/mean")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    notes = Checkpoint(saved(STATES["linen in training"](), tmp_path / "linen")).notes
    assert notes == ("without opt_state, step, which belong to the training",)
    notes = Checkpoint(saved(STATES["nnx in training"](), tmp_path / "nnx")).notes
    assert "tensors from 'model'" in notes[0]
    assert "'optimizer'" in notes[0]
    parts = {name: {"kernel": jnp.ones((3, 5))} for name in ("model", "head")}
    whole = Checkpoint(saved(parts, tmp_path / "parts"))
    assert set(whole.owner) == {"model.kernel", "head.kernel"}
    assert not whole.notes


def test_a_state_of_linen_s_training_is_read(tmp_path: Path) -> None:
    variables = linen_variables()
    state = TrainState.create(
        apply_fn=LinenNet().apply, params=variables["params"], tx=optax.adam(1e-3)
    )
    stored = Checkpoint(saved(state, tmp_path / "orbax"))
    assert np.array_equal(
        stored.array("params.Conv_0.kernel"), variables["params"]["Conv_0"]["kernel"]
    )
    assert all(name.startswith("params.") for name in stored.owner)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(5)(nn.relu(nn.Dense(23)(nn.relu(nn.Conv(13, (3, 3))(x)).mean((1, 2)))))


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        (lambda state: {"model": state, "config": {"width": 5}, "data": [X]}, None),
        (lambda state: {"model": state, "config": {"width": 5}, "data": [X]}, "model"),
        (lambda state: {"state": state, "step": 3}, None),
        (lambda state: {"state": state, "step": 3}, "state/params"),
        (lambda state: state.params, None),
    ],
)
def test_a_state_within_others_and_parameters_alone_fit_the_model(
    tree: Any, key: str | None, tmp_path: Path
) -> None:
    params = Dense().init(jax.random.key(0), X)["params"]
    state = TrainState.create(apply_fn=Dense().apply, params=params, tx=optax.adam(1e-3))
    source = saved(tree(state), tmp_path / "orbax", ocp.PyTreeCheckpointer)
    model, fresh = (Dense().bind(Dense().init(jax.random.key(seed), X)) for seed in (0, 5))
    plan = rf.compress_checkpoint(source, tmp_path / "out", POLICY, key=key)
    assert {layer.path for layer in plan.layers} == {"Conv_0", "Dense_0", "Dense_1"}
    assert len(plan.replaced) >= 2
    small = rf.load(fresh, tmp_path / "out", inputs=X)
    assert np.array_equal(small(X), rf.apply(model, plan, inputs=X).model(X))
    assert np.array_equal(filled(fresh, source, key)(X), model(X))


def test_the_folder_of_a_manager_names_its_checkpoints(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path / "steps") as manager:
        for step in (9, 10):
            manager.save(step, args=ocp.args.StandardSave(linen_variables()))
        manager.wait_until_finished()
    with pytest.raises(rf.RankfoldError, match="name a folder in it, as 9/default, 10/default"):
        Checkpoint(tmp_path / "steps")
    assert "params.Conv_0.kernel" in Checkpoint(tmp_path / "steps" / "10" / "default")


def test_damage_and_links_are_refused(tmp_path: Path) -> None:
    source = saved(linen_variables(), tmp_path / "orbax")
    linked, garbled = (shutil.copytree(source, tmp_path / name) for name in "ab")
    (linked / "d" / "elsewhere").symlink_to(tmp_path)
    (garbled / "_METADATA").write_text("{")
    # Of several arrays orbax drops the errors of all but the first, and Python complains of them.
    cut = saved({"kernel": jnp.ones((3, 5))}, tmp_path / "cut")
    for file in cut.rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for folder, words in ((linked, "link"), (garbled, "orbax checkpoint"), (cut, "byte range")):
        with pytest.raises(rf.RankfoldError, match=words):
            rf.compress_checkpoint(folder, tmp_path / "out", POLICY)
        assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_changes_is_noticed(tmp_path: Path) -> None:
    source = saved(linen_variables(), tmp_path / "orbax")
    stored, copy = Checkpoint(source), shutil.copytree(source, tmp_path / "copy")
    assert Checkpoint(copy).content == stored.content
    shutil.rmtree(source)
    saved(linen_variables(1), source)
    assert not stored.is_unchanged()
    assert Checkpoint(source).content != Checkpoint(copy).content


def test_text_among_the_arrays_is_an_error_that_names_it(tmp_path: Path) -> None:
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "orbax", {"a": {"kernel": jnp.ones((3, 5))}, "name": "text"})
    with pytest.raises(rf.RankfoldError, match="'name' is String"):
        Checkpoint(tmp_path / "orbax")
