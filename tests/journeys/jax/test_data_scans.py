"""Stacks of layers under scan are refitted like the same layers written out in a loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import rankfold as rf
from rankfold.calibration.batches import Calibration
from rankfold.calibration.moments import RegressionSums
from rankfold.linalg import Array
from rankfold.ops import Chain, of_groups
from rankfold.testing.visits import Visits
from rankfold_jax.nnx.adapter import NNXAdapter

WIDTH, HIDDEN, LENGTH = 12, 20, 3
POLICY = rf.Ratio(0.3)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def data(last: int = 16) -> list[Array]:
    """Two batches, of 16 and of `last` examples; all is compiled once for each size."""
    x = normal(40, 3, WIDTH) @ normal(WIDTH, WIDTH)
    return [x[:16], x[16 : 16 + last]]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> tuple[Any, Any]:
        return x + nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(HIDDEN, name="up")(x))), None


class Deep(nn.Module):
    block: Any = Block
    lengths: tuple[int, ...] = (LENGTH,)
    reverse: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        blocks = self.block
        for length in self.lengths:
            blocks = nn.scan(
                blocks,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=length,
                reverse=self.reverse,
            )
        x, _ = blocks(name="blocks")(nn.Dense(WIDTH, name="first")(x), None)
        return nn.Dense(5, name="last")(x)


class Loop(nn.Module):
    order: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(WIDTH, name="first")(x)
        for place in self.order:
            x, _ = Block(name=f"block{place}")(x)
        return nn.Dense(5, name="last")(x)


def drawn(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Array:
    """Numbers of a parameter that are not drawn by JAX, which would compile that for each model."""
    scale = 1 / np.sqrt(shape.shape[-2]) if path[-1].key == "kernel" else 0.1
    numbers = scale * normal(*shape.shape, seed=100 + len(jax.tree_util.keystr(path)))
    return numbers.astype(shape.dtype)


def linen(lengths: tuple[int, ...] = (LENGTH,), **options: Any) -> tuple[Any, Any]:
    """A stack under scan, and the same layers in a Python loop."""
    scanned = Deep(lengths=lengths, **options)
    shapes = jax.eval_shape(scanned.init, jax.random.key(1), data()[0])["params"]
    params = jax.tree_util.tree_map_with_path(drawn, shapes)
    split = {name: params[name] for name in ("first", "last")}
    count = int(np.prod(lengths))
    for place in range(count):
        index = np.unravel_index(place, lengths[::-1])
        split[f"block{place}"] = jax.tree.map(lambda a, i=index: a[i], params["blocks"])
    order = tuple(range(count))
    loop = Loop(order[::-1] if scanned.reverse else order)
    return scanned.bind({"params": params}), loop.bind({"params": split})


class BlockNNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return x + self.down(nnx.gelu(self.up(x)))


class DeepNNX(nnx.Module):
    def __init__(self) -> None:
        self.first = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(1))
        keys = jax.random.split(jax.random.key(0), LENGTH)
        self.blocks = nnx.vmap(lambda key: BlockNNX(nnx.Rngs(key)))(keys)
        self.last = nnx.Linear(WIDTH, 5, rngs=nnx.Rngs(2))

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(block: Any, x: Any) -> Any:
            return block(x)

        return self.last(forward(self.blocks, self.first(x)))


class LoopNNX(nnx.Module):
    def __init__(self, deep: DeepNNX) -> None:
        self.first, self.last = deep.first, deep.last
        graph, state = nnx.split(deep.blocks)
        for place in range(LENGTH):
            one = jax.tree.map(lambda a, i=place: a[i], state)
            setattr(self, f"block{place}", nnx.merge(graph, one))

    def __call__(self, x: Any) -> Any:
        x = self.first(x)
        for place in range(LENGTH):
            x = getattr(self, f"block{place}")(x)
        return self.last(x)


def in_nnx() -> tuple[Any, Any]:
    deep = DeepNNX()
    return deep, LoopNNX(deep)


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "linen, reverse and remat, scan over scan": lambda: linen(
        lengths=(2, 2), block=nn.remat(Block), reverse=True
    ),
    "nnx": in_nnx,
}


def arrays(model: Any, name: str) -> list[Array]:
    """Of the layers in the place of one."""
    if isinstance(model, nnx.Module):
        part: Any = model
        for key in name.split("."):
            part = getattr(part, key)
        return [np.asarray(a) for a in jax.tree.leaves(nnx.state(part, nnx.Param))]
    found = model.variables["params"]
    for key in name.split("."):
        found = found[key]
    return [np.asarray(a) for a in jax.tree.leaves(found)]


def product(stages: list[Array]) -> tuple[Array, Array]:
    """The kernel and the bias that the arrays of a chain amount to: signs of factors are free."""
    (bias,) = (a for a in stages if a.ndim == 1)
    return functools.reduce(np.matmul, (a for a in stages if a.ndim == 2)), bias


def sizes(model: Any, layer: str, order: list[int], x: Array) -> list[float]:
    """‖y‖² of the outputs of a layer of each block in the original model."""
    found = []
    x = np.asarray(dense(model, "first")(x))
    for place in order:
        up = dense(model, f"block{place}.up")(x)
        down = dense(model, f"block{place}.down")(jax.nn.gelu(up))
        found.append(float(np.square(up if layer == "up" else down).sum()))
        x = x + down
    return found


def dense(model: Any, name: str) -> Callable[[Any], Any]:
    first, second = arrays(model, name)
    kernel, bias = (first, second) if first.ndim == 2 else (second, first)
    return lambda x: x @ kernel + bias


@pytest.mark.parametrize("name", MODELS)
def test_a_scanned_stack_is_refitted_like_a_loop(name: str) -> None:
    scanned, loop = MODELS[name]()
    batches = data(last=8 if name == "nnx" else 16)
    np.testing.assert_allclose(scanned(batches[0]), loop(batches[0]), rtol=1e-3, atol=1e-3)
    options: dict[str, Any] = {"inputs": batches[0], "calibration": batches, "include": "*"}
    one, other = (rf.compress(model, POLICY, **options) for model in (scanned, loop))
    assert one.plan.loss == pytest.approx(other.plan.loss, rel=1e-3)
    order = list(getattr(loop, "order", range(LENGTH)))
    for layer in ("up", "down"):
        stack = one.plan[f"blocks.{layer}"]
        places = [other.plan[f"block{place}.{layer}"] for place in order]
        assert stack.ranks == places[0].ranks
        assert stack.refit == any(place.refit for place in places)
        weights = np.array(sizes(loop, layer, order, np.concatenate(batches)))
        for kind in ("predicted", "measured"):
            parts = np.array([getattr(place, kind) for place in places])
            expected = np.sqrt((parts**2 * weights).sum() / weights.sum())
            assert getattr(stack, kind) == pytest.approx(expected, rel=1e-3)
        stacked = arrays(one.model, f"blocks.{layer}")
        for place in order:
            alone = arrays(other.model, f"block{place}.{layer}")
            parts = [a.reshape(-1, *b.shape)[place] for a, b in zip(stacked, alone, strict=True)]
            for part, expected in zip(product(parts), product(alone), strict=True):
                assert np.linalg.norm(part - expected) < 1e-3 * np.linalg.norm(expected)
    assert any(layer.refit for layer in one.plan.layers if layer.path.startswith("blocks"))
    assert one.plan["last"].measured == pytest.approx(other.plan["last"].measured, rel=1e-3)


def test_a_refit_of_a_scanned_residual_net_lowers_the_loss_on_held_out_examples() -> None:
    model, _ = linen(lengths=(5,))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 2, WIDTH)) * np.geomspace(1, 0.1, WIDTH)
    x = (x @ rng.standard_normal((WIDTH, WIDTH))).astype(np.float32)
    options: dict[str, Any] = {"inputs": x[:1], "calibration": [x[:128], x[128:]]}
    options["exclude"] = ["first", "last"]
    refitted, plain = (
        rf.compress(model, POLICY, refit=refit, **options).plan for refit in (True, False)
    )
    assert refitted["blocks.up"].refit
    assert refitted["blocks.down"].refit
    assert refitted.loss is not None
    assert plain.loss is not None
    assert refitted.loss[1] < 0.95 * plain.loss[1]


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_scanned_layers_that_stay_are_refitted_from_the_first_replaced_one_on(name: str) -> None:
    batches = data()
    models, plans = linen() if name == "linen" else in_nnx(), []
    downs = (["blocks.down"], [f"block{place}.down" for place in range(LENGTH)])
    for model, paths in zip(models, downs, strict=True):
        options: dict[str, Any] = {"inputs": batches[0], "calibration": batches}
        policy = dict.fromkeys(paths, rf.Ranks(2))
        plans.append(rf.compress(model, rf.Energy(1.0), overrides=policy, **options).plan)
    stack, places = plans[0]["blocks.up"], [plans[1][f"block{i}.up"] for i in range(LENGTH)]
    assert stack.method is None
    assert not places[0].refit
    assert stack.refit == any(place.refit for place in places)
    assert stack.error is None
    weights = sizes(models[1], "up", list(range(LENGTH)), np.concatenate(batches))
    if stack.refit:
        parts = np.array([place.measured or 0.0 for place in places])
        expected = np.sqrt((parts**2 * weights).sum() / np.sum(weights))
        assert stack.measured == pytest.approx(expected, rel=0.1)


class StackedAxes(nnx.Module):
    """Layers of one shape in one array, called in some way."""

    def __init__(self, shape: tuple[int, ...], call: Callable[[Any, Any, Any], Any]) -> None:
        def make(key: Any) -> Any:
            return nnx.Linear(6, 6, rngs=nnx.Rngs(key))

        made: Any = make
        for _ in shape:
            made = nnx.vmap(made)
        self.first = nnx.Linear(6, 6, rngs=nnx.Rngs(1))
        self.layers = made(jax.random.split(jax.random.key(0), shape))
        self.last = nnx.Linear(6, 3, rngs=nnx.Rngs(2))
        self.call = call

    def __call__(self, x: Any) -> Any:
        graph, state = nnx.split(self.layers)

        def apply(state: Any, x: Any) -> Any:
            return jnp.tanh(nnx.merge(graph, state)(x))

        return self.last(self.call(apply, state, self.first(x)))


Apply = Callable[[Any, Any], Any]


def scan(apply: Apply, state: Any, x: Any, **options: Any) -> Any:
    return lax.scan(lambda x, one: (apply(one, x), None), x, state, **options)[0]


def scan_in_scan(apply: Apply, state: Any, x: Any) -> Any:
    return scan(lambda one, x: scan(jax.checkpoint(apply), one, x), state, x)


def vmap_in_scan(apply: Apply, state: Any, x: Any) -> Any:
    return scan(lambda one, x: jax.vmap(apply, (0, None))(one, x).mean(0), state, x)


def scan_in_vmap(apply: Apply, state: Any, x: Any) -> Any:
    return jax.vmap(lambda one, x: scan(apply, one, x), (0, None))(state, x).mean(0)


def twice_in_a_turn(apply: Apply, state: Any, x: Any) -> Any:
    def turn(one: Any, x: Any) -> Any:
        return lax.scan(lambda x, _: (apply(one, x), None), x, None, length=2)[0]

    return scan(turn, state, x)


def while_in_a_turn(apply: Apply, state: Any, x: Any) -> Any:
    def turn(one: Any, x: Any) -> Any:
        return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, apply(one, c[1])), (0, x))[1]

    return scan(turn, state, x)


def branch_in_a_turn(apply: Apply, state: Any, x: Any) -> Any:
    great = jnp.abs(x).mean() > 1.2

    def turn(one: Any, x: Any) -> Any:
        return lax.cond(great, apply, lambda one, x: -apply(one, x), one, x)

    return scan(turn, state, x)


def some_turns(apply: Apply, state: Any, x: Any) -> Any:
    def turn(x: Any, pair: Any) -> Any:
        place, one = pair
        return lax.cond(place == 1, lambda one, x: x, apply, one, x), None

    return lax.scan(turn, x, (jnp.arange(3), state))[0]


def constant(apply: Apply, state: Any, x: Any) -> Any:
    return lax.scan(lambda x, _: (apply(state, x), None), x, None, length=3)[0]


def indexed(apply: Apply, state: Any, x: Any) -> Any:
    def turn(place: Any, x: Any) -> Any:
        return apply(jax.tree.map(lambda a: a[place // 2], state), x)

    return lax.fori_loop(0, 6, turn, x)


def over_time(apply: Apply, state: Any, x: Any) -> Any:
    def step(carried: Any, x: Any) -> Any:
        return scan(apply, state, carried + x), None

    return lax.scan(step, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1))[0]


def parts_over_time(apply: Apply, state: Any, x: Any) -> Any:
    """A stack whose turns each hold a loop that is longer for longer inputs."""

    def turn(one: Any, x: Any) -> Any:
        def step(carried: Any, x: Any) -> Any:
            return jnp.tanh(carried + x), None

        y = lax.scan(step, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1))[0]
        return apply(one, x + y[:, None])

    return scan(turn, state, x)[:, 0]


def branch(apply: Apply, state: Any, x: Any) -> Any:
    return lax.cond(jnp.square(x).sum() > 0, apply, lambda one, x: x, state, x)


Parts = list[tuple[int, ...]]
STRUCTURES: dict[str, tuple[tuple[int, ...], Any, tuple[Any, ...], Parts | None]] = {
    "scan": ((3,), scan, (), [(0,), (1,), (2,)]),
    "backwards": (
        (3,),
        lambda *given: scan(*given, reverse=True, unroll=2),
        (),
        [(2,), (1,), (0,)],
    ),
    "scan in scan": ((2, 3), scan_in_scan, (), [(i,) for i in range(6)]),
    "vmap in scan": ((3, 2), vmap_in_scan, (), [(0, 1), (2, 3), (4, 5)]),
    "scan in vmap": ((2, 3), scan_in_vmap, (), [(0, 3), (1, 4), (2, 5)]),
    "twice in a turn": ((3,), twice_in_a_turn, (), None),
    "while in a turn": ((3,), while_in_a_turn, (), None),
    "branches in a turn": ((3,), branch_in_a_turn, (), None),
    "not in every turn": ((3,), some_turns, (), [(0,), (2,)]),
    "constant": ((), constant, (), None),
    "indexed": ((3,), indexed, (), None),
    "over time": ((3,), over_time, (4,), None),
    "loops of other lengths": ((3,), parts_over_time, (4,), [(0,), (1,), (2,)]),
    "one branch": ((), branch, (), []),
}
UNEVEN = ("scan", "while in a turn", "branches in a turn", "one branch")
# They are the same to moments and measures as "scan", "vmap in scan" and "indexed" are.
COMPRESSED = [n for n in STRUCTURES if n not in ("backwards", "scan in scan", "scan in vmap")]
COMPRESSED.remove("while in a turn")  # it has no gradient


@pytest.mark.parametrize("name", STRUCTURES)
def test_loops_of_every_structure(name: str) -> None:
    shape, call, times, parts = STRUCTURES[name]
    model = StackedAxes(shape, call)
    # The last batch is a smaller one for a structure of each kind of control flow, which is all
    # that tells batches of other sizes apart; for the others it shares their compilations.
    first, last = (12, 4) if name in UNEVEN else (8, 8)
    batches = [normal(first, *times, 6), normal(last, *times, 6, seed=1) * 2]
    if times:
        batches[1] = batches[1][:, :2]
    calibration = Calibration.of(batches, None, None)
    met: list[tuple[str, tuple[int, ...] | None, bool]] = []
    adapter = NNXAdapter()
    adapter.trace(model, batches[0])
    ops = {path: adapter.read(model, path) for path in adapter.layers(model)}

    def visit(
        path: str, fit: RegressionSums | None, held: RegressionSums | None, groups: Any = None, /
    ) -> Chain:
        met.append((path, None if groups is None else tuple(groups), fit is not None))
        return (ops[path] if groups is None else of_groups(ops[path], groups, ops[path].groups),)

    rng = np.random.default_rng(0)
    errors = adapter.run_paired(model, calibration, ops, Visits(visit), sequential=True, rng=rng)
    assert errors == dict.fromkeys(("first", "layers", "last"), 0.0)
    found = [(groups, with_sums) for path, groups, with_sums in met if path == "layers"]
    if parts is None:
        assert not any(with_sums for _, with_sums in found)
    else:
        assert found == ([(groups, True) for groups in parts] or [(None, True)])
    assert [path for path, *_ in met if path != "layers"] == ["first", "last"]
    if name not in COMPRESSED:
        return
    small = rf.compress(model, rf.Ranks(2), inputs=batches[0], calibration=batches)
    pairs = [[np.asarray(m(x)) for m in (model, small.model)] for x in batches]
    apart = sum(float(np.square(a - b).sum()) for a, b in pairs)
    size = sum(float(np.square(a).sum()) for a, _ in pairs)
    assert small.plan["last"].measured == pytest.approx(np.sqrt(apart / size), rel=1e-3)
    layers = small.plan["layers"]
    if layers.method is None:
        assert "no moments" in layers.reason
        return
    assert layers.measured is not None
    assert (layers.predicted is None) == (parts is None)
    assert parts is not None or not layers.refit
