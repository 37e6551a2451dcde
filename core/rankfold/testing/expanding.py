"""Checks of an adapter that implements `Expands`."""

from __future__ import annotations

import numpy as np

from rankfold.adapters.capabilities import capabilities
from rankfold.ops import with_weight
from rankfold.ops.reference import forward, reconstruct
from rankfold.testing.assertions import halved, same
from rankfold.testing.cases import EXACT, decomposed, methods, probe, supported
from rankfold.testing.check import check
from rankfold.testing.harness import Harness, Unsupported


@check("reduced_rank")
def check_expanded(harness: Harness) -> None:
    """An expanded model has the layers of the original, with the weights of the chains.

    The original is handed over with other numbers: only its structure counts.
    """
    if capabilities(harness.adapter()).expands is None:
        raise Unsupported("expansion: its adapter expands no models")
    for index, (name, op, model) in enumerate(supported(harness)):
        exact = [method for method in methods(op) if method in EXACT]
        method, x = exact[index % len(exact)], probe(op)
        small = halved(harness, model, op, method, name)
        before = harness.call(small.model, x)
        zeros = with_weight(op, np.zeros_like(op.weight))
        adapter = harness.adapter()
        dense = small.expanded(harness.model([zeros]), inputs=harness.inputs(x), adapter=adapter)
        weight = reconstruct(op, decomposed(op, method, full=False).chain)
        expected = forward(with_weight(op, weight), x)
        same(name, harness.call(dense, x), expected, f"the model expanded from {method} computes")
        shapes = {key: array.shape for key, array in harness.state(dense).items()}
        original = {key: array.shape for key, array in harness.state(model).items()}
        assert shapes == original, f"{name}: expanded from {method} it has parameters {shapes}"
        same(name, harness.call(small.model, x), before, "expanded, it computes", exact=True)
