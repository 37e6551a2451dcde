"""Paths, sharing and exchange of the modules of an NNX model."""

from typing import Any

import jax
import pytest
from flax import nnx

import rankfold as rf
from rankfold_jax.nnx.module_tree import children, exchanged, modules, nodes, paths, variables


def linear(inputs: int = 11, outputs: int = 11, **options: Any) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), **options)


def test_a_dotted_key_that_hides_a_layer_is_an_error() -> None:
    model = nnx.Dict({"a.b": linear(11, 7), "a": nnx.Dict(b=linear(11, 5))})
    with pytest.raises(rf.RankfoldError, match=r"two modules have the path 'a.b'"):
        rf.plan(model, rf.Ranks(2))


class Holder(nnx.Module):
    """Holds a layer in containers of every kind, and itself."""

    def __init__(self, layer: nnx.Module) -> None:
        self.plain = layer
        self.listed = nnx.List([linear(), layer])
        self.tupled = nnx.data((1, layer))
        self.named = nnx.data({"a": {"b": layer}})
        self.me = nnx.data(self)
        self.static = "text"


def test_every_path_leads_to_a_module_and_a_circle_ends() -> None:
    layer = linear()
    model = Holder(layer)
    leading = [path for path, module in paths(model) if module is layer]
    assert leading == ["plain", "listed.1", "tupled.1", "named.a.b"]
    assert list(modules(model)) == ["", "plain", "listed", "listed.0"]


def test_nodes_are_modules_and_variables_once() -> None:
    model = Holder(linear())
    every = nodes(model)
    assert len({id(node) for node in every}) == len(every)
    assert sum(isinstance(node, nnx.Param) for node in every) == 4
    assert sum(node is model for node in every) == 1


def test_a_layer_is_exchanged_in_every_container() -> None:
    layer, new = linear(), linear(3, 5)
    model = Holder(layer)
    tuples = model.tupled
    assert exchanged(model, {id(layer): new}, {}) is model
    assert model.plain is model.listed[1] is model.tupled[1] is model.named["a"]["b"] is new
    assert model.tupled[0] == 1
    assert tuples[1] is layer  # made anew, and not changed
    assert model.me is model
    assert model.static == "text"


def test_what_holds_no_such_layer_stays_the_same_object() -> None:
    value = (1, (linear(), None))
    assert exchanged(value, {id(object()): linear()}, {}) is value


def test_children_are_told_by_name_and_leaves_have_none() -> None:
    layer = linear()
    assert dict(children(layer))["kernel"] is layer.kernel
    assert set(variables(layer)) == {"kernel", "bias"}
    assert [name for name, _ in children({"a": 1, 2: "b"})] == ["a", "2"]
    for leaf in (layer.kernel, "text", 3, None, jax.numpy.ones(2)):
        assert list(children(leaf)) == []
