"""Whole NNX models: where layers are held and shared, stacks, transforms, training."""

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import rankfold as rf

X = np.random.default_rng(1).standard_normal((2, 11)).astype(np.float32)


def linear(inputs: int = 11, outputs: int = 11, **options: Any) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options)


def near(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=5e-4, atol=2e-5)


def same(a: Any, b: Any) -> bool:
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b)), strict=True)
    )


class Pair(NamedTuple):
    first: Any
    second: Any


class NNXLayer(nnx.Module):
    """A model that holds three layers in some container."""

    def __init__(self, held: Any, use: Callable[[Any], list[Any]]) -> None:
        self.held = held
        self.use = use

    def __call__(self, x: Any) -> Any:
        for layer in self.use(self.held):
            x = layer(x)
        return x


def three() -> list[nnx.Linear]:
    return [linear(), linear(), linear()]


HOLDERS: dict[str, tuple[Callable[[], nnx.Module], tuple[str, ...]]] = {
    "list": (lambda: NNXLayer(nnx.List(three()), list), ("held.0", "held.1", "held.2")),
    "plain list": (lambda: NNXLayer(nnx.data(three()), list), ("held.0", "held.1", "held.2")),
    "tuple": (lambda: NNXLayer(nnx.data(tuple(three())), list), ("held.0", "held.1", "held.2")),
    "dict": (
        lambda: NNXLayer(nnx.Dict(a=linear(), b=linear()), lambda h: [h["a"], h.b]),
        ("held.a", "held.b"),
    ),
    "plain dict": (
        lambda: NNXLayer(nnx.data({"b": linear(), "a": linear()}), lambda h: [h["a"], h["b"]]),
        ("held.b", "held.a"),
    ),
    "named tuple": (
        lambda: NNXLayer(nnx.data(Pair(linear(), linear())), list),
        ("held.0", "held.1"),
    ),
    "nested": (
        lambda: NNXLayer(nnx.data([{"z": (linear(),)}]), lambda h: [h[0]["z"][0]]),
        ("held.0.z.0",),
    ),
    "sequential": (
        lambda: NNXLayer(nnx.Sequential(linear(), nnx.relu, linear()), lambda h: [h]),
        ("held.layers.0", "held.layers.2"),
    ),
}


@pytest.mark.parametrize("case", HOLDERS)
@pytest.mark.parametrize("inplace", [True, False])
def test_layers_are_replaced_wherever_they_are_held(case: str, inplace: bool) -> None:
    make, paths = HOLDERS[case]
    model = make()
    expected = model(X)
    small = rf.compress(model, rf.Ranks("full"), inputs=X, inplace=inplace)
    assert {p.path: p.method for p in small.plan.layers} == dict.fromkeys(paths, "svd")
    assert not [m for m in small.model.use(small.model.held) if isinstance(m, nnx.Linear)]
    near(small.model(X), expected)


@pytest.mark.parametrize("case", HOLDERS)
def test_a_container_keeps_its_class(case: str) -> None:
    model = HOLDERS[case][0]()
    assert type(rf.compress(model, rf.Ranks(2)).model.held) is type(model.held)


class Shared(nnx.Module):
    """One layer in an attribute, a list, a dict and a tuple."""

    def __init__(self) -> None:
        layer = linear()
        self.a, self.b = layer, nnx.List([layer])
        self.c, self.d = nnx.data({"k": layer}), nnx.data((layer,))

    def all(self) -> list[Any]:
        return [self.a, self.b[0], self.c["k"], self.d[0]]

    def __call__(self, x: Any) -> Any:
        return sum(layer(x) for layer in self.all())


class SharedTuple(nnx.Module):
    """One tuple in two attributes."""

    def __init__(self) -> None:
        self.p = self.q = nnx.data((linear(), linear()))

    def all(self) -> list[Any]:
        return [self.p[0], self.q[0]]

    def __call__(self, x: Any) -> Any:
        for layer in (*self.p, *self.q):
            x = layer(x)
        return x


@pytest.mark.parametrize("make", [Shared, SharedTuple])
@pytest.mark.parametrize("inplace", [True, False])
def test_a_shared_layer_is_replaced_everywhere_and_stays_shared(make: Any, inplace: bool) -> None:
    model = make()
    small = rf.compress(model, rf.Ranks(2), inputs=X, inplace=inplace).model
    first, *others = small.all()
    assert not isinstance(first, nnx.Linear)
    assert all(other is first for other in others)


def test_a_shared_layer_is_counted_once_in_size_and_four_times_in_macs() -> None:
    plan = rf.plan(Shared(), rf.Ranks(2), inputs=X)
    assert [layer.path for layer in plan.layers] == ["a"]
    assert (plan.size, plan["a"].macs[0]) == (132, 4 * 2 * 121)


@pytest.mark.parametrize("pattern", ["a", "b.0", "c.k", "d.0"])
def test_a_shared_layer_is_excluded_under_each_of_its_paths(pattern: str) -> None:
    assert rf.plan(Shared(), rf.Ranks(2), exclude=pattern)["a"].method is None


class Child(nnx.Module):
    def __init__(self, parent: Any) -> None:
        self.parent, self.fc = parent, linear(7, 5)

    def __call__(self, x: Any) -> Any:
        return self.fc(self.parent.fc(x))


class Parent(nnx.Module):
    def __init__(self) -> None:
        self.fc = linear(11, 7)
        self.child = Child(self)

    def __call__(self, x: Any) -> Any:
        return self.child(x)


def test_a_cycle_of_modules_stays_one() -> None:
    model = Parent()
    small = rf.compress(model, rf.Ranks("full"), inputs=X).model
    assert small.child.parent is small
    near(small(X), model(X))


def test_more_than_ten_layers_of_one_list_keep_their_places() -> None:
    sizes = [11, 11, 7, 7, 7, 11, 7, 11, 11, 11, 7, 7, 11]
    model = nnx.Sequential(*(linear(a, b) for a, b in pairwise(sizes)))
    plan = rf.plan(model, rf.Ranks(1), inputs=X)
    sizes = [2 * a * b for a, b in pairwise(sizes)]
    assert [layer.macs[0] for layer in plan.layers] == sizes


class Mixed(nnx.Module):
    """Statistics, random numbers, an embedding, attention and a convolution."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.table = nnx.Embed(13, 12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(3, 12, decode=False, rngs=rngs)
        self.conv = nnx.Conv(12, 7, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(7, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(7, 12, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        x = self.attention(self.table(ids))
        return self.table.attend(self.head(self.drop(nnx.relu(self.norm(self.conv(x))))))


IDS = jnp.asarray([[1, 2, 3, 4, 0], [7, 0, 12, 1, 1]])


def test_the_original_is_untouched() -> None:
    model, twin = Mixed(), Mixed()
    variables = [id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)]
    rf.compress(model, rf.Ranks(2), inputs=IDS)
    assert nnx.graphdef(model) == nnx.graphdef(twin)
    assert variables == [id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)]
    states = [nnx.state(m, nnx.Not(nnx.RngState)) for m in (model, twin)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *states))


def test_tracing_uses_up_no_random_numbers() -> None:
    model = Mixed()
    counts = [
        int(c[...])
        for c in jax.tree.leaves(
            nnx.state(model, nnx.RngCount), is_leaf=lambda v: isinstance(v, nnx.Variable)
        )
    ]
    small = rf.compress(model, rf.Ranks(2), inputs=IDS).model
    for after in (model, small):
        assert counts == [
            int(c[...])
            for c in jax.tree.leaves(
                nnx.state(after, nnx.RngCount), is_leaf=lambda v: isinstance(v, nnx.Variable)
            )
        ]


def test_every_layer_of_a_mixed_model_is_replaced_and_reproduced() -> None:
    model = Mixed()
    small = rf.compress(model, rf.Ranks("full"), inputs=IDS, methods=["svd", "channel_svd"])
    assert all(layer.method for layer in small.plan.layers)
    assert len(small.plan.layers) == 7
    model.eval()
    small.model.eval()
    near(small.model(IDS), model(IDS))


def test_the_size_is_that_of_all_params() -> None:
    small = rf.compress(Mixed(), rf.Ranks(2), inputs=IDS)
    count = sum(x.size for x in jax.tree.leaves(nnx.state(small.model, nnx.Param)))
    assert small.plan.size + sum(b - a for a, b in (p.params for p in small.plan.layers)) == count


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training: bool) -> None:
    model = Mixed()
    (model.train if training else model.eval)()
    small = rf.compress(model, rf.Ranks(2), inputs=IDS).model
    assert small.drop.deterministic is not training
    assert small.norm.use_running_average is not training


def test_the_result_trains_with_optax() -> None:
    small = rf.compress(Mixed(), rf.Ranks(2), inputs=IDS).model
    optimizer = nnx.Optimizer(small, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        def loss(model: Any) -> Any:
            return ((model(IDS) - 1) ** 2).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(small, optimizer)) for _ in range(8)]
    assert losses[-1] < losses[0]


def simple() -> nnx.Module:
    return nnx.Sequential(linear(11, 7), nnx.relu, linear(7, 5))


TRANSFORMS: dict[str, Callable[[Any, Any], Any]] = {
    "jit": lambda m, x: nnx.jit(lambda m, x: m(x))(m, x),
    "remat": lambda m, x: nnx.remat(lambda m, x: m(x))(m, x),
    "vmap": lambda m, x: nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(m, x),
    "scan": lambda m, x: nnx.scan(lambda m, x: m(x), in_axes=(None, 0), out_axes=0)(m, x),
    "merge": lambda m, x: nnx.merge(*nnx.split(m))(x),
    "split by type": lambda m, x: nnx.merge(*nnx.split(m, nnx.Param, ...))(x),
    "clone": lambda m, x: nnx.clone(m)(x),
    "pure jit": lambda m, x: jax.jit(lambda s: nnx.merge(nnx.graphdef(m), s)(x))(nnx.state(m)),
    "cached_partial": lambda m, x: nnx.cached_partial(nnx.jit(lambda m, x: m(x)), m)(x),
    "eval_shape": lambda m, x: jnp.zeros(nnx.eval_shape(lambda m: m(x), m).shape) + m(x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_result_goes_through_every_transform(name: str) -> None:
    small = rf.compress(simple(), rf.Ranks(2)).model
    near(TRANSFORMS[name](small, X), small(X))


def test_a_function_compiled_before_sees_the_compression_in_place() -> None:
    model, fast = simple(), nnx.jit(lambda m, x: m(x))
    before = fast(model, X)
    small = rf.compress(model, rf.Ranks(1), inputs=X, inplace=True)
    assert small.model is model
    near(fast(model, X), nnx.clone(model)(X))
    assert np.abs(np.asarray(fast(model, X)) - before).max() > 1e-3


class JitInside(nnx.Module):
    def __init__(self) -> None:
        self.fc = linear(11, 7)

    @nnx.jit
    def __call__(self, x: Any) -> Any:
        return self.fc(x)


class ReadsUnderJit(nnx.Module):
    def __init__(self) -> None:
        self.fc = linear(11, 7)

    @nnx.jit
    def __call__(self, x: Any) -> Any:
        return x @ self.fc.kernel[...]


def test_a_jit_inside_the_model_that_ran_before_is_seen_through() -> None:
    model = ReadsUnderJit()
    model(X)
    rf.plan(model, rf.Ranks(1), inputs=X)
    assert "read from outside" in rf.plan(model, rf.Ranks(1), inputs=X)["fc"].reason


def test_a_jit_inside_the_model_computes_the_compressed_layer() -> None:
    model = JitInside()
    before = model(X)
    small = rf.compress(model, rf.Ranks(1), inputs=X).model
    near(small(X), small.fc(X))
    near(model(X), before)


INPUTS: dict[str, Any] = {
    "array": X,
    "tuple": (X,),
    "mapping": {"x": X},
    "shape": jax.ShapeDtypeStruct(X.shape, X.dtype),
    "with a flag": (X, True),
    "with none": {"x": X, "flag": None},
    "with rngs": {"x": X, "rngs": nnx.Rngs(0)},
}


class Flagged(nnx.Module):
    def __init__(self) -> None:
        self.fc = linear(11, 7)

    def __call__(self, x: Any, flag: bool | None = None, rngs: Any = None) -> Any:
        noise = jax.random.normal(rngs.noise(), (7,)) if rngs is not None else 0
        return self.fc(x) + noise if flag else self.fc(x)


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_come_in_many_forms(kind: str) -> None:
    given = INPUTS[kind] if kind != "with rngs" else {"x": X, "rngs": nnx.Rngs(noise=1)}
    assert rf.plan(Flagged(), rf.Ranks(2), inputs=given)["fc"].macs == (154, 72)


def axes_of(kernel: int, bias: int) -> nnx.StateAxes:
    return nnx.StateAxes({nnx.PathContains("kernel"): kernel, ...: bias})


class Stacked(nnx.Module):
    """Layers of one shape in one, their stack along any axis."""

    def __init__(self, axes: Any, count: int = 3, inputs: int = 5, make: Any = None) -> None:
        make = make or (lambda key: nnx.Linear(inputs, 7, rngs=nnx.Rngs(key)))
        keys = jax.random.split(jax.random.key(0), count)
        self.layers = nnx.vmap(make, in_axes=0, out_axes=axes)(keys)
        self.axes = nnx.static(axes)

    def __call__(self, x: Any) -> Any:
        return nnx.vmap(lambda m, x: m(x), in_axes=(self.axes, None))(self.layers, x)


def conv(key: Any) -> nnx.Conv:
    return nnx.Conv(10, 6, (3, 2), feature_group_count=2, rngs=nnx.Rngs(key))


def einsum(key: Any) -> nnx.Einsum:
    return nnx.Einsum("bi,inh->bnh", (5, 2, 7), (2, 7), rngs=nnx.Rngs(key))


def general(key: Any) -> nnx.LinearGeneral:
    return nnx.LinearGeneral(5, (2, 7), rngs=nnx.Rngs(key))


STACKS: dict[str, tuple[Callable[[], nnx.Module], tuple[int, ...]]] = {
    "first": (lambda: Stacked(0), (2, 5)),
    "second": (lambda: Stacked(1), (2, 5)),
    "last": (lambda: Stacked(-1), (2, 5)),
    "last of the kernel": (lambda: Stacked(axes_of(2, 1)), (2, 5)),
    "as many as inputs": (lambda: Stacked(0, 5), (2, 5)),
    "second, as many as inputs": (lambda: Stacked(1, 5), (2, 5)),
    "conv last": (lambda: Stacked(-1, make=conv), (2, 8, 9, 10)),
    "einsum": (lambda: Stacked(0, make=einsum), (2, 5)),
    "general": (lambda: Stacked(1, make=general), (2, 5)),
    "one": (lambda: Stacked(0, 1), (2, 5)),
}


@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: Stacked(0, 7), (2, 5)), (lambda: Stacked(0, make=conv), (2, 8, 9, 10))],
    ids=["as many as outputs", "as many as taps"],
)
def test_a_stack_that_could_be_one_along_two_axes_is_left_alone(make: Any, shape: Any) -> None:
    plan = rf.plan(make(), rf.Ranks(1), inputs=np.resize(X, shape).astype(np.float32))
    assert plan["layers"].method is None
    assert "along more than one possible axis" in plan["layers"].reason


@pytest.mark.parametrize("case", STACKS)
def test_a_stack_is_replaced_and_reproduced(case: str) -> None:
    make, shape = STACKS[case]
    model, x = make(), np.resize(X, shape) + np.arange(shape[-1], dtype=np.float32)
    small = rf.compress(model, rf.Ranks("full"), inputs=x, methods=["svd", "channel_svd"])
    assert small.plan["layers"].method, small.plan["layers"].reason
    near(small.model(x), model(x))


@pytest.mark.parametrize("count", [3, 5, 7])
@pytest.mark.parametrize(("kernel", "bias"), [(1, 0), (2, 0), (0, 1)])
def test_a_stack_of_several_axes_is_reproduced_or_left_alone(
    kernel: int, bias: int, count: int
) -> None:
    model, x = Stacked(axes_of(kernel, bias), count), X[:, :5]
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    assert small.plan["layers"].method or small.plan["layers"].reason
    near(small.model(x), model(x))


def test_each_layer_of_a_stack_is_decomposed_on_its_own() -> None:
    model = Stacked(0)
    small = rf.compress(model, rf.Ranks(2)).model
    for i in range(3):
        one = linear(5, 7)
        nnx.update(one, jax.tree.map(lambda a, i=i: a[i], nnx.state(model.layers)))
        alone = rf.compress(nnx.Sequential(one), rf.Ranks(2)).model
        near(small(X[:, :5])[i], alone(X[:, :5]))


def test_the_macs_of_a_stack_are_those_of_its_layers() -> None:
    assert rf.plan(Stacked(0), rf.Ranks(2), inputs=X[:, :5])["layers"].macs == (210, 144)


class Scanned(nnx.Module):
    def __init__(self) -> None:
        keys = jax.random.split(jax.random.key(0), 3)
        self.layers = nnx.vmap(lambda key: nnx.Linear(11, 11, rngs=nnx.Rngs(key)))(keys)

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def forward(x: Any, layer: Any) -> Any:
            return nnx.relu(layer(x))

        return forward(x, self.layers)


def test_a_scanned_stack_under_remat_is_replaced_and_reproduced() -> None:
    model = Scanned()
    small = rf.compress(model, rf.Ranks("full"), inputs=X)
    assert small.plan["layers"].macs == (2 * 3 * 121, 2 * 3 * 242)
    near(small.model(X), model(X))


def in_mesh(*names: Any, kind: Any = AxisType.Auto) -> Any:
    """The stages of a layer with such names of axes, and the layer, under a mesh of one device."""
    mesh = jax.make_mesh((1, 1), ("x", "y"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        layer = linear(
            11,
            7,
            kernel_metadata={"out_sharding": names, "note": "mine"},
            bias_metadata={"out_sharding": names[1:]},
        )
        small = rf.compress(nnx.Sequential(layer), rf.Ranks(2), inputs=X).model.layers[0]
    return mesh, layer, small


@pytest.mark.parametrize("names", [("x", "y"), (None, "y"), ("x", None), (("x", "y"), None)])
def test_names_of_axes_are_handed_on_without_the_rank(names: tuple[Any, Any]) -> None:
    first, last = in_mesh(*names)[2].layers
    assert first.kernel.get_metadata("out_sharding") == (names[0], None)
    assert last.kernel.get_metadata("out_sharding") == (None, names[1])
    assert last.bias.get_metadata("out_sharding") == names[1:]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_arrays_lie_as_their_names_say(kind: Any) -> None:
    first, last = in_mesh("x", "y", kind=kind)[2].layers
    found = [v.get_raw_value().sharding.spec for v in (first.kernel, last.kernel, last.bias)]
    assert [tuple(spec) for spec in found] == [("x", None), (None, "y"), ("y",)]


def test_further_metadata_is_kept() -> None:
    stages = in_mesh("x", "y")[2].layers
    assert {stage.kernel.get_metadata("note") for stage in stages} == {"mine"}


def test_the_sharding_of_the_output_can_be_asked_for() -> None:
    mesh, layer, chain = in_mesh("x", "y", kind=AxisType.Explicit)
    with jax.set_mesh(mesh):
        wanted = layer(X, out_sharding=PartitionSpec("x", "y")).sharding
        assert chain(X, out_sharding=PartitionSpec("x", "y")).sharding == wanted


def test_a_stack_keeps_the_name_of_its_axis() -> None:
    mesh = jax.make_mesh((1, 1), ("x", "y"), axis_types=(AxisType.Auto, AxisType.Auto))

    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: "x"})
    def make(key: Any) -> Any:
        metadata = {"out_sharding": (None, "y")}
        return nnx.Linear(5, 7, use_bias=False, kernel_metadata=metadata, rngs=nnx.Rngs(key))

    with jax.set_mesh(mesh):
        layers = make(jax.random.split(jax.random.key(0), 3))
        assert layers.kernel.get_metadata("out_sharding") == ("x", None, "y")
        first, last = rf.compress(NNXLayer(layers, list), rf.Ranks(2)).model.held.layers
    assert first.kernel.get_metadata("out_sharding") == ("x", None, None)
    assert last.kernel.get_metadata("out_sharding") == ("x", None, "y")


def test_arrays_stay_on_their_mesh() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("x", "y"))
    model = nnx.Sequential(linear(11, 7))
    kernel = model.layers[0].kernel
    kernel.set_raw_value(jax.device_put(kernel[...], NamedSharding(mesh, PartitionSpec("x", "y"))))
    first, last = rf.compress(model, rf.Ranks(2)).model.layers[0].layers
    found = [s.kernel.get_raw_value().sharding for s in (first, last)]
    assert [f.mesh for f in found] == [mesh, mesh]
    assert [tuple(f.spec) for f in found] == [("x", None), (None, "y")]


class Frozen(nnx.Variable):
    pass


def test_a_kernel_keeps_the_class_of_its_variable() -> None:
    layer = linear(11, 7)
    layer.kernel = Frozen(layer.kernel[...])
    first, last = rf.compress(nnx.Sequential(layer), rf.Ranks(2)).model.layers[0].layers
    assert [type(s.kernel) for s in (first, last)] == [Frozen, Frozen]
    assert type(last.bias) is nnx.Param


def cells(kind: str) -> nnx.Module:
    rngs = nnx.Rngs(0)
    if kind == "Bidirectional":
        return nnx.Bidirectional(*(nnx.RNN(nnx.GRUCell(11, 6, rngs=rngs)) for _ in range(2)))
    return nnx.RNN(getattr(nnx, kind)(11, 6, rngs=rngs))


@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "Bidirectional"])
def test_recurrent_layers_are_replaced_and_reproduced(kind: str) -> None:
    model, x = cells(kind), np.resize(X, (2, 5, 11))
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    assert all(layer.method for layer in small.plan.layers)
    assert sum(layer.macs[0] for layer in small.plan.layers) % (2 * 5) == 0
    near(small.model(x), model(x))


def test_a_layer_that_is_never_called_costs_no_macs() -> None:
    model = nnx.Dict(a=linear(), b=linear())
    held = NNXLayer(model, lambda h: [h["a"]])
    assert rf.plan(held, rf.Ranks(2), inputs=X)["held.b"].macs == (0, 0)


def test_a_model_that_fails_on_its_inputs_is_named() -> None:
    with pytest.raises(rf.RankfoldError, match="inputs: the model fails on them"):
        rf.plan(simple(), rf.Ranks(2), inputs=X[:, :4])


@pytest.mark.parametrize("policy", [rf.Ratio(0.5), rf.VBMF(), rf.Energy(0.9)])
def test_no_layer_grows_without_literal_ranks(policy: Any) -> None:
    plan = rf.compress(Mixed(), policy, inputs=IDS).plan
    assert all(after <= before for before, after in (p.params for p in plan.layers))
    assert all(after <= before for before, after in (p.macs for p in plan.layers) if before)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "tree": lambda model: jax.tree.map(lambda x: x, model),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_the_result_computes_the_same(how: str) -> None:
    small = rf.compress(nnx.Sequential(linear(), linear()), rf.Ranks(2), inputs=X).model
    near(COPIES[how](small)(X), small(X))


def test_the_result_can_be_printed() -> None:
    assert "LowRankSequential" in repr(rf.compress(simple(), rf.Ranks(2), inputs=X).model)


def test_no_trace_is_left_in_the_classes_of_the_model() -> None:
    model = rf.compress(Mixed(), rf.Ranks(2), inputs=IDS, exclude="*").model
    assert {type(m) for _, m in nnx.iter_modules(model)} == {
        type(m) for _, m in nnx.iter_modules(Mixed())
    }
    assert all("rankfold_path" not in vars(m) for _, m in nnx.iter_modules(model))


class Decoder(nnx.Module):
    def __init__(self) -> None:
        self.attention = nnx.MultiHeadAttention(
            3, 12, decode=True, normalize_qk=True, rngs=nnx.Rngs(0)
        )
        self.attention.init_cache((2, 4, 12))

    def __call__(self, x: Any) -> Any:
        return self.attention(x)


def test_attention_with_a_cache_is_replaced_and_reproduced() -> None:
    model, x = Decoder(), np.resize(X, (2, 1, 12))
    small = rf.compress(model, rf.Ranks("full"), inputs=x)
    assert [layer.method for layer in small.plan.layers] == ["svd"] * 4
    for _ in range(2):
        near(small.model(x), model(x))


def test_a_layer_called_in_a_loop_with_the_same_kernel_counts_every_time() -> None:
    def use(layer: Any, x: Any) -> Any:
        return nnx.scan(lambda c, m: (c, m(x)), in_axes=(nnx.Carry, None), length=5)(0.0, layer)[1]

    model = NNXLayer(linear(11, 7), lambda layer: [lambda x: use(layer, x)])
    assert rf.plan(model, rf.Ranks(2), inputs=X)["held"].macs == (770, 360)
