"""What was compressed as a checkpoint is what is compressed as a model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rankfold as rf
from rankfold.errors import RankfoldError
from rankfold.plugins.registry import registry


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 32, 3, padding=1, stride=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 48, (3, 2), bias=False, dilation=2),
        nn.Flatten(),
        nn.Linear(48 * 4 * 6, 64),
        nn.Linear(64, 40),
    ).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("policy", [rf.Ratio(0.4), rf.VBMF(), rf.Ranks(5)], ids=repr)
def test_a_torch_model_is_the_same_either_way(tmp_path: Path, dtype, policy) -> None:
    model = network(dtype).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    plan = rf.compress_checkpoint(tmp_path / "model.safetensors", tmp_path / "out", policy)
    small = rf.compress(model, policy)
    loaded = rf.load(network(dtype).eval(), tmp_path / "out")
    x = torch.randn(2, 8, 16, 16, dtype=dtype)
    assert torch.equal(loaded(x), small.model(x))
    for layer in plan.replaced:
        assert (layer.method, layer.ranks) == (
            small.plan[layer.path].method,
            small.plan[layer.path].ranks,
        )


def test_moments_serve_as_for_the_model(tmp_path: Path) -> None:
    model = network().eval()
    x = torch.randn(64, 8, 16, 16)
    moments = rf.gather(model, [x])
    moments.save(tmp_path / "moments.safetensors")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    policy = rf.Ratio(0.4)
    plan = rf.compress_checkpoint(
        tmp_path / "model.safetensors",
        tmp_path / "out",
        policy,
        moments=tmp_path / "moments.safetensors",
    )
    assert plan["5"].predicted is not None
    loaded = rf.load(network().eval(), tmp_path / "out")
    assert torch.equal(loaded(x), rf.compress(model, policy, moments=moments).model(x))


def test_given_shapes_count_the_macs_of_a_budget(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    plan = rf.compress_checkpoint(
        tmp_path / "model.safetensors",
        tmp_path / "out",
        rf.Budget(macs=0.5),
        inputs={"0": (1, 16, 16), "3": (1, 8, 8), "[56]": (1,)},
    )
    assert plan.macs is not None
    assert plan.macs[1] <= 0.5 * plan.macs[0]


def in_two(file: Path, folder: Path) -> Path:
    """The tensors of a file in two, with an index."""
    tensors = load_file(file)
    folder.mkdir()
    names = sorted(tensors)
    owner = {name: f"part-{place % 2}.safetensors" for place, name in enumerate(names)}
    for part in set(owner.values()):
        save_file({n: tensors[n] for n in names if owner[n] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owner}))
    return folder


def test_nnx_and_linen_models_are_the_same_either_way(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    from flax import linen, nnx

    class Own(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
            self.head = nnx.Linear(16, 24, rngs=rngs)
            self.table = nnx.Embed(20, 24, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(self.conv(x)).mean((1, 2))) + self.table(np.full(1, 3))

    class Other(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(16, (3, 3), strides=2)(x)
            return linen.Dense(24, name="head")(x.mean((1, 2)))

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, 8)).astype(np.float32)

    def values(shapes):  # initializers would have to be compiled
        return jax.tree.map(lambda s: jax.numpy.asarray(rng.random(s.shape, np.float32)), shapes)

    own, other = nnx.eval_shape(lambda: Own(nnx.Rngs(0))), Other()
    nnx.update(own, values(nnx.state(own)))
    other = other.bind(values(jax.eval_shape(other.init, jax.random.key(0), x)))
    for name, model in (("nnx", own), ("linen", other)):
        whole = tmp_path / f"{name}.safetensors"
        registry().adapter(model).save_weights(model, whole)
        source = in_two(whole, tmp_path / f"{name}-in")
        plan = rf.compress_checkpoint(source, tmp_path / f"{name}-out", rf.Ranks(3))
        assert len(list((tmp_path / f"{name}-out").glob("*.safetensors"))) == 2
        assert {layer.path for layer in plan.replaced} >= {"head"}
        loaded = rf.load(model, tmp_path / f"{name}-out", inputs=x)
        small = rf.compress(model, rf.Ranks(3), inputs=x)
        assert np.array_equal(loaded(x), small.model(x))
        assert {p.path for p in plan.replaced} == {p.path for p in small.plan.replaced}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_comes_back_as_float8(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(48, 8) @ torch.randn(8, 64)).to(dtype)
    stored = {"a.weight": weight, "b.weight": weight.clone(), "b.weight_scale": torch.ones(1)}
    save_file(stored, tmp_path / "model.safetensors")
    plan = rf.compress_checkpoint(tmp_path / "model.safetensors", tmp_path / "out", rf.Ranks(8))
    found = load_file(tmp_path / "out" / "weights.safetensors")
    assert found["a.0.weight"].dtype == found["a.1.weight"].dtype == dtype
    assert torch.equal(found["b.weight"].view(torch.uint8), weight.view(torch.uint8))
    assert "quantised" in plan["b"].reason
    dense = found["a.1.weight"].float() @ found["a.0.weight"].float()
    error = float((dense - weight.float()).norm() / weight.float().norm())
    assert plan["a"].error == pytest.approx(error, rel=1e-3)
    assert error < (0.1 if dtype is torch.float8_e4m3fn else 0.2)


def test_a_model_of_other_shapes_is_refused(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    rf.compress_checkpoint(tmp_path / "model.safetensors", tmp_path / "out", rf.Ratio(0.4))
    other = network()
    other[3] = nn.Conv2d(32, 48, (3, 2), groups=2)
    with pytest.raises(RankfoldError, match="layer '3' is Conv 32→48 3×2 groups 2, but the plan"):
        rf.load(other, tmp_path / "out")


def strided() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 64, 8, stride=8),
        nn.Conv2d(64, 64, 3, padding=1, groups=4),
        nn.Conv2d(64, 64, 3, padding=1),
    )


def test_a_budget_over_macs_holds_with_the_strides_that_are_given(tmp_path: Path) -> None:
    save_file(strided().state_dict(), tmp_path / "model.safetensors")
    inputs = {
        "0": {"shape": (1, 32, 32), "stride": 8},
        "1": {"shape": (1, 4, 4), "padding": 1, "groups": 4},
        "2": {"shape": (1, 4, 4), "padding": 1},
    }
    policy = rf.Budget(macs=0.5)
    file = tmp_path / "model.safetensors"
    plan = rf.compress_checkpoint(file, tmp_path / "out", policy, inputs=inputs)
    live = rf.plan(strided(), policy, inputs=torch.zeros(1, 16, 32, 32))
    assert [(p.ranks, p.macs) for p in plan.layers] == [(p.ranks, p.macs) for p in live.layers]
    assert [p.op for p in plan.replaced] == [p.op for p in live.replaced]
    x = torch.randn(2, 16, 32, 32)
    loaded = rf.load(strided(), tmp_path / "out")
    assert torch.equal(loaded(x), rf.apply(strided(), plan).model(x))


def test_a_plan_of_a_checkpoint_serves_the_model(tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"tok": nn.Embedding(30, 24), "token_emb": nn.Embedding(30, 24), "conv": strided()[0]}
    )
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    plan = rf.compress_checkpoint(
        tmp_path / "model.safetensors", tmp_path / "out", rf.Ratio(0.4), exclude="tok"
    )
    assert [layer.path for layer in plan.replaced] == ["conv"]
    expected = rf.load(model, tmp_path / "out")["conv"]
    x = torch.randn(2, 16, 16, 16)
    assert torch.equal(rf.apply(model, plan).model["conv"](x), expected(x))


def test_tensors_can_be_dropped(tmp_path: Path) -> None:
    state = {**network().state_dict(), "5.mask": torch.ones(64, 64), "inv_freq": torch.ones(3)}
    save_file(state, tmp_path / "model.safetensors")
    file, out = tmp_path / "model.safetensors", tmp_path / "out"
    for wrong, message in (("nothing*", "matches no tensor"), ("5.weight", "it cannot go")):
        with pytest.raises(RankfoldError, match=message):
            rf.compress_checkpoint(file, out, rf.Ratio(0.4), drop=wrong)
    rf.compress_checkpoint(file, out, rf.Ratio(0.4), drop=["*.mask", "inv_freq"])
    rf.load(network(), out)


def test_all_layers_that_cannot_be_replaced_are_named(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    rf.compress_checkpoint(
        tmp_path / "model.safetensors", tmp_path / "out", rf.Ratio(0.4), include="*"
    )
    other = network()
    other[3], other[6] = nn.Conv2d(32, 48, (3, 2), groups=2), nn.Embedding(40, 64)
    with pytest.raises(RankfoldError, match=r"exclude=\['3', '6'\]"):
        rf.load(other, tmp_path / "out")


def test_limits_that_nothing_counts_towards_are_an_error(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    file, out = tmp_path / "model.safetensors", tmp_path / "out"
    with pytest.raises(RankfoldError, match="'5' has 'strides'; give a shape"):
        rf.compress_checkpoint(
            file, out, rf.Ratio(0.4), inputs={"5": {"shape": (1,), "strides": 2}}
        )
    for limit in ({"latency": 0.5}, {"drop": 0.01, "evaluate": len}):
        with pytest.raises(RankfoldError, match="needs the model itself"):
            rf.compress_checkpoint(file, out, rf.Budget(**limit))
    stored = {"a.embedding": torch.randn(20, 30)}
    save_file(stored, tmp_path / "table.safetensors")
    with pytest.raises(RankfoldError, match="no layer counts any"):
        rf.compress_checkpoint(
            tmp_path / "table.safetensors", out, rf.Budget(macs=0.5), inputs={"a": (1,)}
        )


def test_a_head_is_left_alone_where_its_name_tells(tmp_path: Path) -> None:
    shapes = {"body.0": (30, 20), "body.2": (31, 30), "head": (10, 31)}
    tensors = {f"{path}.weight": torch.randn(shape) for path, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    plan = rf.compress_checkpoint(tmp_path / "model.safetensors", tmp_path / "out", rf.Ratio(0.3))
    assert [layer.path for layer in plan.replaced] == ["body.0", "body.2"]
    assert plan["head"].reason.startswith("by its name it gives an output of the model")
    file, out = tmp_path / "model.safetensors", tmp_path / "named"
    named = rf.compress_checkpoint(file, out, rf.Ratio(0.3), overrides={"head": rf.Ratio(0.2)})
    assert named["head"].method == "svd"
