"""Checks of what a replacement keeps of its layer, and of what can be done with it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from rankfold.errors import RankfoldError
from rankfold.ops import with_weight
from rankfold.policies.ranks import Ranks
from rankfold.storage.folder import load, save
from rankfold.testing.assertions import (
    compressed,
    drawn_linear,
    fresh_adapter,
    halved,
    same,
    unchanged,
)
from rankfold.testing.cases import BRIEF, CASES, methods, probe, supported
from rankfold.testing.check import check
from rankfold.testing.harness import Harness, Unsupported, as_float64


@check("full_rank")
def check_save_and_load(harness: Harness) -> None:
    """A saved model is loaded into a fresh one, bit for bit."""
    for name, op, model in supported(harness):
        x = probe(op)
        small = halved(harness, model, op, methods(op)[0], name)
        # All zeros, so that a weight which is not loaded cannot pass for one that is.
        other = harness.model([with_weight(op, np.zeros_like(op.weight))])
        with tempfile.TemporaryDirectory() as folder:
            save(small.model, small.plan, Path(folder) / "saved", harness.adapter())
            loaded = load(
                other,
                Path(folder) / "saved",
                inputs=harness.inputs(x),
                adapter=harness.adapter(),
            )
        saved, actual = harness.state(small.model), harness.state(loaded)
        assert set(saved) == set(actual), f"{name}: the loaded model has other parameters"
        for key, array in saved.items():
            exact = np.array_equal(as_float64(array), as_float64(actual[key]))
            assert exact, f"{name}: parameter {key!r} of the loaded model has other numbers"
        expected = harness.call(small.model, x)
        same(name, harness.call(loaded, x), expected, "the loaded model computes")


@check("save_and_load")
def check_load_checks(harness: Harness) -> None:
    """Weights of another shape are refused, and the model is as it was before."""
    op = drawn_linear(7, 11)
    model, other = harness.model([op]), harness.model([drawn_linear(7, 5)])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        # Weights of a model of the same structure and with the same names: only the shape tells.
        fresh_adapter(harness, other, drawn_linear(7, 5)).save_weights(other, file)
        before = harness.state(model)
        try:
            fresh_adapter(harness, model, op).load_weights(model, file)
        except RankfoldError:
            unchanged("load", before, harness.state(model))
            return
    raise AssertionError("load_weights() accepts weights of another shape")


@check("full_rank")
def check_dtype(harness: Harness) -> None:
    """The replacement has the dtype of the layer."""
    for dtype in harness.dtypes:
        for name, op, model in supported(harness, dtype, BRIEF):
            small = compressed(harness, model, op, Ranks(2), methods(op)[0], name, dtype)
            kept = {str(a.dtype) for a in harness.state(model).values()}
            actual = {str(a.dtype) for a in harness.state(small.model).values()}
            assert actual == kept, f"{name}, {dtype}: the replacement holds {sorted(actual)}"


@check("full_rank")
def check_mode(harness: Harness) -> None:
    """The replacement is in train mode where the layer was, and in eval mode where it was."""
    op = CASES["linear"]
    for training in (True, False):
        model = harness.model([op])
        harness.set_training(model, training)
        small = compressed(harness, model, op, Ranks(2), "svd", "linear")
        actual = harness.training(small.model)
        assert all(mode is training for mode in actual), f"mode {actual} in place of {training}"
        assert all(mode is training for mode in harness.training(model)), "the original's changed"


@check("full_rank")
def check_gradients(harness: Harness) -> None:
    """Every parameter of the compressed model has a gradient, finite and not all zero."""
    for index, (name, op, model) in enumerate(supported(harness)):
        # The first and the last method that apply; of most kernels the last is CP, with depthwise
        # stages. They take turns, but on one case of each kind.
        ends = (methods(op)[0], methods(op)[-1])
        for method in set(ends) if name in BRIEF else ends[index % 2 :][:1]:
            small = halved(harness, model, op, method, name)
            actual = harness.gradients(small.model, probe(op))
            wanted = len(harness.state(small.model))
            what = f"{name}, {method}"
            assert len(actual) == wanted, f"{what}: {len(actual)} gradients for {wanted} parameters"
            for gradient in map(as_float64, actual):
                assert np.isfinite(gradient).all(), f"{what}: a gradient is not finite"
                assert gradient.any(), f"{what}: a gradient is all zero"


@check("full_rank")
def check_compiled(harness: Harness) -> None:
    """Compiled, the compressed model gives what it gives uncompiled."""
    for name in ("linear", "convolution 2-d"):
        op = CASES[name]
        try:
            model = harness.model([op])
        except Unsupported:
            continue
        small = compressed(harness, model, op, Ranks(2), methods(op)[0], name)
        x = probe(op)
        compiled = harness.compiled(small.model)(x)
        same(name, compiled, harness.call(small.model, x), "compiled, the model computes")
