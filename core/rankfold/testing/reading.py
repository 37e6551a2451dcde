"""Checks of what an adapter reads off a model, without changing it."""

from __future__ import annotations

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.ops import Embedding, params
from rankfold.ops.reference import forward
from rankfold.testing.assertions import (
    drawn_linear,
    epsilon,
    extent,
    fresh_adapter,
    only_path,
    same,
    size_of,
    unchanged,
)
from rankfold.testing.cases import CASES, decomposed, distance, methods, probe, square, supported
from rankfold.testing.check import TOLERANCE, check
from rankfold.testing.harness import Harness, Unsupported


@check()
def check_layers(harness: Harness) -> None:
    """Every layer is listed once, in the order of the model."""
    # Layers of one size could be listed in any order without being seen.
    ops = [CASES["linear"], square(7)]
    model = harness.model(ops)
    adapter = fresh_adapter(harness, model, ops[0])
    paths = list(adapter.layers(model))
    assert len(paths) == len(ops), f"layers() lists {paths} for a model of {len(ops)} layers"
    actual = [adapter.read(model, path).weight.shape for path in paths]
    wanted = [op.weight.shape for op in ops]
    assert actual == wanted, f"layers() lists weights {actual} in place of {wanted}: order"


@check("layers")
def check_read(harness: Harness) -> None:
    """A layer is read with its weight as (out, in/groups, *kernel), its bias and its geometry."""
    for name, op, model in supported(harness):
        adapter = fresh_adapter(harness, model, op)
        actual = adapter.read(model, only_path(adapter, model))
        assert type(actual) is type(op), f"{name}: read as {type(actual).__name__}"
        assert actual.weight.shape == op.weight.shape, f"{name}: weight {actual.weight.shape}"
        assert distance(actual.weight, op.weight) < TOLERANCE, (
            f"{name}: other numbers in the weight"
        )
        x = probe(op)
        same(name, forward(actual, x), forward(op, x), "the op that was read computes")
        # Of the harness itself: were its model another one, every later check would blame the
        # adapter.
        same(name, harness.call(model, x), forward(op, x), "the harness's own model computes")


@check("layers")
def check_missing_bias(harness: Harness) -> None:
    """A layer without a bias is read without one, and its replacement has none."""
    for name, op, model in supported(harness):
        if op.bias is not None or isinstance(op, Embedding):
            continue
        adapter = fresh_adapter(harness, model, op)
        path = only_path(adapter, model)
        actual = adapter.read(model, path)
        assert actual.bias is None, f"{name}: read with a bias"
        chain = decomposed(op, methods(op)[0])
        small = adapter.replace(model, {path: adapter.build(model, path, chain)}, inplace=False)
        # By the number of parameters, since a bias of zeros would not show in the outputs.
        size = size_of(harness, small)
        assert size <= params(chain), f"{name}: the replacement has {size} parameters, a bias too"


@check()
def check_size(harness: Harness) -> None:
    """The parameters of a model are counted as they are."""
    for name, op, model in supported(harness):
        actual = fresh_adapter(harness, model, op).size(model)
        assert actual == params(op), f"{name}: size() is {actual} in place of {params(op)}"


@check("read")
def check_precision(harness: Harness) -> None:
    """The machine epsilon is that of the layer's own dtype."""
    op = CASES["linear"]
    for dtype in harness.dtypes:
        model = harness.model([op], dtype)
        adapter = fresh_adapter(harness, model, op, dtype)
        actual = adapter.precision(model, only_path(adapter, model))
        assert actual == epsilon(dtype), f"{dtype}: precision() is {actual}"


@check("read")
def check_trace(harness: Harness) -> None:
    """A trace gives the extent of every layer's input, and leaves the model as it was."""
    for name, op, model in supported(harness):
        before = harness.state(model)
        adapter = harness.adapter()
        x = probe(op)
        trace = adapter.trace(model, harness.inputs(x))
        path = only_path(adapter, model)
        assert path not in trace.refusals, f"{name}: refused for {trace.refusals[path]!r}"
        wanted = extent(op, x.shape)
        actual = trace.extents.get(path)
        assert actual == (wanted,), f"{name}: extents {actual} in place of {(wanted,)}"
        unchanged(name, before, harness.state(model))


@check("trace")
def check_outputs(harness: Harness) -> None:
    """A trace that tells which layers give the outputs of a model names the last of a sequence."""
    ops = [CASES["linear"], square(7), drawn_linear(5, 7)]
    model = harness.model(ops)
    adapter = harness.adapter()
    outputs = adapter.trace(model, harness.inputs(probe(ops[0]))).outputs
    if outputs is None:
        raise Unsupported("traces that tell which layers give the outputs")
    last = list(adapter.layers(model))[-1]
    assert outputs == {last}, f"outputs {sorted(outputs)} in place of {[last]}"


@check("read")
def check_bad_inputs(harness: Harness) -> None:
    """Inputs on which the model fails are an error that says so."""
    op = CASES["linear"]
    model = harness.model([op])
    wrong = np.ones((2, op.weight.shape[1] + 1), np.float32)
    try:
        harness.adapter().trace(model, harness.inputs(wrong))
    except RankfoldError:
        return
    raise AssertionError("trace() accepts inputs of the wrong size")
