"""Checks of the modules that an adapter builds and puts in place of layers."""

from __future__ import annotations

from rankfold.ops import macs, params, with_weight
from rankfold.ops.reference import forward, reconstruct
from rankfold.pipeline.api import compress
from rankfold.pipeline.result import Compressed
from rankfold.policies.ranks import Ranks
from rankfold.testing.assertions import (
    all_replaced,
    compressed,
    drawn_linear,
    extent,
    fresh_adapter,
    halved,
    only_path,
    same,
    unchanged,
)
from rankfold.testing.cases import EXACT, decomposed, methods, probe, rows, square, supported
from rankfold.testing.check import check
from rankfold.testing.harness import Harness


@check("read")
def check_build(harness: Harness) -> None:
    """A module built for a chain computes what the chain computes."""
    for name, op, model in supported(harness):
        adapter, x = fresh_adapter(harness, model, op), rows(op)
        path = only_path(adapter, model)
        for method in methods(op):
            chain = decomposed(op, method, full=False).chain
            module = adapter.build(model, path, chain)
            what = f"the module for {method} computes"
            same(name, adapter.run(module, x), forward(chain, x), what)


@check("build")
def check_full_rank(harness: Harness) -> None:
    """At full rank the compressed model gives what the original gives.

    The methods take turns: the check of lower rank has each of them on each layer, and at full rank
    they differ from that in sizes alone. A fit by CP at full rank is large and tells no more of an
    adapter than one of lower rank.
    """
    for index, (name, op, model) in enumerate(supported(harness)):
        exact = [method for method in methods(op) if method in EXACT]
        method, x = exact[index % len(exact)], probe(op)
        small = compressed(harness, model, op, Ranks("full"), method, name)
        what = f"the model at full rank by {method} computes"
        same(name, harness.call(small.model, x), harness.call(model, x), what)


@check("full_rank")
def check_reduced_rank(harness: Harness) -> None:
    """At a lower rank it gives what the layer with the reconstructed weight would."""
    for name, op, model in supported(harness):
        for method in EXACT.intersection(methods(op)):
            x = probe(op)
            # The plain decomposition of the op, without adapter and pipeline, is what both must
            # amount to.
            small = halved(harness, model, op, method, name)
            chain = decomposed(op, method, full=False).chain
            dense = reconstruct(op, chain)
            expected = forward(with_weight(op, dense), x)
            what = f"the model of lower rank by {method} computes"
            same(name, harness.call(small.model, x), expected, what)


@check("full_rank")
def check_chain_of_layers(harness: Harness) -> None:
    """Each of several layers of a model is replaced in its own place."""
    # All sizes differ, so that a replacement in a wrong place does not fit.
    ops = [drawn_linear(7, 11), drawn_linear(5, 7), drawn_linear(9, 5)]
    model = harness.model(ops)
    x = probe(ops[0])
    small = compress(
        model, Ranks("full"), inputs=harness.inputs(x), adapter=harness.adapter(), methods="svd"
    )
    all_replaced("three layers", small)
    what = "the model computes"
    same("three layers", harness.call(small.model, x), harness.call(model, x), what)


@check("full_rank")
def check_original_untouched(harness: Harness) -> None:
    """Compressing leaves the original as it was, and shares nothing with it that can change."""
    for name, op, model in supported(harness):
        # At rank 1 little of the weight is left, so an array shared with the original would show.
        before, x = harness.state(model), probe(op)
        output = harness.call(model, x)
        compressed(harness, model, op, Ranks(1), methods(op)[0], name)
        unchanged(name, before, harness.state(model))
        same(name, harness.call(model, x), output, "afterwards the original computes", exact=True)


@check("full_rank", "size", "missing_bias")
def check_parameters(harness: Harness) -> None:
    """The compressed model has as many parameters as the plan says."""
    for name, op, model in supported(harness):
        method = methods(op)[0]
        small = halved(harness, model, op, method, name)
        _as_many_parameters(f"{name}, {method}", harness, small)


@check("full_rank", "trace", "parameters")
def check_macs(harness: Harness) -> None:
    """The compressed model has as many multiply-accumulates as the plan says."""
    for name, op, model in supported(harness):
        for method in methods(op):
            small = halved(harness, model, op, method, name)
            # Every method compresses every case here anyway: the check of parameters takes the
            # first method alone.
            _as_many_parameters(f"{name}, {method}", harness, small)
            adapter = harness.adapter()
            extents = adapter.trace(small.model, harness.inputs(probe(op))).extents
            if not all(extents.get(path) for path in adapter.layers(small.model)):
                continue  # a stage in a form of the backend's own, whose layers cannot be read
            size = sum(
                macs(adapter.read(small.model, path), extent)
                for path in adapter.layers(small.model)
                for extent in extents[path]
            )
            assert small.plan.macs is not None
            predicted = small.plan.macs[1]
            assert size == predicted, f"{name}, {method}: {size} MACs, planned {predicted}"


def _as_many_parameters(name: str, harness: Harness, small: Compressed) -> None:
    size = sum(array.size for array in harness.state(small.model).values())
    predicted = small.plan.model_params[1]
    assert size == predicted, f"{name}: {size} parameters, planned {predicted}"


@check("reduced_rank", "trace", "parameters")
def check_shared(harness: Harness) -> None:
    """A layer that is applied twice is replaced once, and the replacement is applied twice."""
    op, x = square(7), probe(square(7))
    model = harness.shared(op)
    inputs = harness.inputs(x)
    small = compress(model, Ranks(3), inputs=inputs, adapter=harness.adapter(), methods="svd")
    all_replaced("shared layer", small)
    chain = decomposed(op, "svd", full=False).chain
    expected = forward(chain, forward(chain, x))
    same("shared layer", harness.call(small.model, x), expected, "the model computes")
    size = sum(array.size for array in harness.state(small.model).values())
    assert size == params(chain), f"shared layer: {size} parameters in place of {params(chain)}"
    assert small.plan.macs is not None
    twice = 2 * macs(chain, extent(op, x.shape))
    assert small.plan.macs[1] == twice, f"shared layer: {small.plan.macs[1]} MACs, not {twice}"


@check("full_rank")
def check_tied(harness: Harness) -> None:
    """Layers with a common weight are left alone with that reason, or stay tied."""
    op, x = square(7), probe(square(7))
    model = harness.tied(op)
    size = sum(array.size for array in harness.state(model).values())
    small = compress(
        model, Ranks(3), inputs=harness.inputs(x), adapter=harness.adapter(), methods="svd"
    )
    after = sum(array.size for array in harness.state(small.model).values())
    replaced = small.plan.replaced
    # Either is right; what must not be is that each layer gets a chain of its own and the model
    # grows.
    if replaced:
        kept = after <= params(decomposed(op, "svd", full=False).chain)
        assert kept, f"tied layers: {after} parameters after, {size} before: the tie is lost"
        return
    silent = [layer.path for layer in small.plan.layers if not layer.reason]
    assert not silent, f"tied layers: {silent} are left alone without a reason"
    assert after == size, f"tied layers: {after} parameters in the copy in place of {size}"
    same("tied layers", harness.call(small.model, x), harness.call(model, x), "it computes")
