"""Collects regression sums for a layer in both runs, and installs its replacement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from rankfold.adapters.base import LayerVisitor
from rankfold.calibration.accumulators import RelativeDistance
from rankfold.calibration.batches import is_held_out
from rankfold.calibration.moments import RegressionSums, has_regression
from rankfold.errors import RankfoldError, Refused
from rankfold.linalg import Array, host
from rankfold.ops import Chain, Embedding, Op, of_groups, with_weight
from rankfold.ops.reference import reconstruct
from rankfold_jax.calibration.layer_products import Ints, LayerProduct, sampled
from rankfold_jax.layouts.parameter_index import ParameterIndex
from rankfold_jax.layouts.sharding import put
from rankfold_jax.paired_run.output_sums import OutputSums, add_distance, regression_terms


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch.

    Attributes:
        first: the number of its first example.
        examples: how many it has.
        closed: the jaxpr of the model.
        arrays: the inputs.
    """

    first: int
    examples: int
    closed: ClosedJaxpr
    arrays: Sequence[Any]


@dataclass(eq=False)
class LayerVisits:
    """Decides on layers and keeps what came of it.

    Attributes:
        parameters: of the layers, by path.
        values: the model's arrays.
        layers: the layers.
        visit: gives the chain of a layer.
        rng: draws the sample of positions.
        examples: in all batches.
        new: by their place, the model's arrays that are others in the compressed one.
        errors: of the layers in whose place a chain is measured.
    """

    parameters: Mapping[str, ParameterIndex]
    values: Sequence[Any]
    layers: Mapping[str, Op]
    visit: LayerVisitor
    rng: np.random.Generator
    examples: int
    new: dict[int, jax.Array] = field(default_factory=dict, init=False)
    errors: dict[str, RelativeDistance] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._open = {path: np.ones(op.groups, bool) for path, op in self.layers.items()}
        self._biases: dict[str, tuple[Array, Array]] = {}
        self._filled: dict[int, Array] = {}

    def decide(self, path: str) -> None:
        """Decides on what is left of a layer, without sums over its inputs."""
        left = np.flatnonzero(self._open[path])
        if len(left):
            self._decide(path, None, None, left)

    def meet(
        self,
        path: str,
        products: Sequence[LayerProduct],
        inputs: Sequence[Any],
        targets: Sequence[Any],
        batches: Sequence[Batch],
    ) -> None:
        """Decides on the groups of a layer that a product is the first of.

        Args:
            path: of the layer.
            products: the product, for each batch.
            inputs: of the layer in the compressed model.
            targets: what the product gives in the original one.
            batches: the batches.
        """
        here = products[0].layout.groups
        if not self._open[path][here].any():
            return
        alike = all(np.array_equal(product.layout.groups, here) for product in products)
        if alike and self._open[path][here].all() and self._whole_layers(path, here):
            self._decide(
                path, *self._regression_sums(path, products, inputs, targets, batches), here
            )
        else:
            self.decide(path)

    def _whole_layers(self, path: str, groups: Ints) -> bool:
        """Whether groups are all those of some of the layers of a stack."""
        each = len(self._open[path]) // self.parameters[path].stack.count
        starts = groups[::each] // each * each
        return np.array_equal(groups, (starts[:, None] + np.arange(each)).reshape(-1))

    def _decide(
        self, path: str, fit: RegressionSums | None, validation: RegressionSums | None, groups: Ints
    ) -> None:
        """Asks for the chain of groups of a layer and puts what it stands for in its place."""
        op, parameter = self.layers[path], self.parameters[path]
        self._open[path][groups] = False
        if len(groups) == op.groups:
            chain = self.visit(path, fit, validation)
        else:
            op = of_groups(op, groups.tolist(), op.groups)
            chain = self.visit(path, fit, validation, groups.tolist())
        if chain[0] is not op:
            self._put(path, op, chain, groups)
        if chain[0] is op or parameter.kernel in self.new:
            whole = self.layers[path]
            old = _spread(whole, whole.bias)
            _, new = self._biases.setdefault(path, (old, old.copy()))
            new[groups] = _spread(op, chain[-1].bias)

    def _put(self, path: str, op: Op, chain: Chain, groups: Ints) -> None:
        parameter = self.parameters[path]
        leaves = [leaf for leaf in (parameter.kernel, parameter.bias) if leaf is not None]
        try:
            dense = self._standing_for(parameter, op, chain, len(groups))
            for leaf in leaves:
                if leaf not in self._filled:
                    self._filled[leaf] = np.array(self.values[leaf], order="C")
            kernel, *bias = (self._filled[leaf] for leaf in leaves)
            parameter.fill(kernel, bias[0] if bias else None, dense, groups.tolist())
        except (Refused, RankfoldError):
            return
        for leaf in leaves:
            self.new[leaf] = _like(self._filled[leaf], self.values[leaf])
            if not self._open[path].any():
                del self._filled[leaf]

    def measure(self, product: LayerProduct, y: Any, other: Any) -> None:
        """Adds what a product gives in both runs to the error of its layer."""
        if product.path in self._biases:
            total = self.errors.setdefault(product.path, RelativeDistance())
            add_distance(total, product, y, other, *self._biases[product.path])

    def _standing_for(self, parameter: ParameterIndex, op: Op, chain: Chain, groups: int) -> Op:
        """The layer, or some groups of it, with the weight of its chain.

        Raises:
            Refused: the framework cannot express the chain.
        """
        if len(chain) > 1 or chain[0].weight.shape != op.weight.shape:
            parameter.form.stages(chain, parameter.stack.count * groups // parameter.groups)
        dense = with_weight(op, reconstruct(op, chain))
        return dense if isinstance(dense, Embedding) else replace(dense, bias=chain[-1].bias)

    def _regression_sums(
        self,
        path: str,
        products: Sequence[LayerProduct],
        inputs: Sequence[Any],
        targets: Sequence[Any],
        batches: Sequence[Batch],
    ) -> tuple[RegressionSums | None, RegressionSums | None]:
        """The sums over fitted and over held-out positions; None where there are none."""
        op = self.layers[path]
        if isinstance(op, Embedding):
            return None, None
        groups = products[0].layout.groups
        whole = len(groups) == op.groups
        basis = self.visit.basis(path) if whole else self.visit.basis(path, groups.tolist())
        if not has_regression(op, basis):
            return None, None
        fit, validation = OutputSums(), OutputSums()
        for product, x, y, batch in zip(products, inputs, targets, batches, strict=True):
            view = product.view
            wanted = sampled(view, op, self.examples, basis)
            chosen = None
            if wanted is not None:
                chance = self.rng.random((view.images, view.positions), dtype=np.float32)
                chosen = np.argpartition(chance, wanted, axis=1)[:, :wanted]
            images = np.arange(view.images)
            number = batch.first + images * batch.examples // max(1, view.images)
            kept = is_held_out(number, self.examples)
            bias = _spread(op, op.bias)[product.layout.groups]
            terms = regression_terms(product, x, y, bias, chosen, kept, basis)
            each = view.positions if wanted is None else wanted
            fit.add(terms[0], each * int((~kept).sum()))
            validation.add(terms[1], each * int(kept.sum()))
        sums = fit.regression_sums()
        return (None, None) if sums is None else (sums, validation.regression_sums())


def _spread(op: Op, bias: Array | None) -> Array:
    """(groups, out/groups), on the host; zeros where there is no bias."""
    out = op.weight.shape[1] if isinstance(op, Embedding) else len(op.weight)
    flat = np.zeros(out, np.float32) if bias is None else host(bias)
    return flat.reshape(op.groups, -1)


def _like(array: Array, old: Any) -> jax.Array:
    """A copy where an array of the model lies."""
    if isinstance(old, jax.Array) and old.committed:
        return put(array.copy(), old.sharding)
    return jnp.array(array)
