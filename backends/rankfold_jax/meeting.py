"""What is decided when a layer is met in two runs, and the sums and errors it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from rankfold.calibration import is_held_out
from rankfold.contracts import Visit
from rankfold.errors import RankfoldError, Refused
from rankfold.moments import Joint, input_form
from rankfold.ops import Array, Chain, Embedding, Op, with_weight
from rankfold.reference import reconstruct
from rankfold_jax.joints import Distance, Joints, joint_terms
from rankfold_jax.sharding import put
from rankfold_jax.sites import Site, sampled
from rankfold_jax.slots import Slot


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


class Meeting:
    """Decides on layers and keeps what came of it.

    Args:
        slots: of the layers, by path.
        values: the model's arrays.
        layers: the layers.
        visit: gives the chain of a layer.
        rng: draws the sample of positions.
        examples: in all batches.

    Attributes:
        met: the layers decided on.
        new: by their place, the model's arrays that are others in the compressed one.
        errors: of the layers in whose place a chain is measured.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        values: Sequence[Any],
        layers: Mapping[str, Op],
        visit: Visit,
        rng: np.random.Generator,
        examples: int,
    ) -> None:
        self._slots = slots
        self._values = values
        self._layers = layers
        self._visit = visit
        self._rng = rng
        self._examples = examples
        self._biases: dict[str, tuple[Array, Array]] = {}
        self.met: set[str] = set()
        self.new: dict[int, jax.Array] = {}
        self.errors: dict[str, Distance] = {}

    def decide(self, path: str, fit: Joint | None, held: Joint | None) -> None:
        """Asks for the chain of a layer and puts what it stands for in its place.

        Args:
            path: of the layer.
            fit: sums over fitted positions.
            held: sums over held-out ones.
        """
        self.met.add(path)
        op, slot = self._layers[path], self._slots[path]
        chain = self._visit(path, fit, held)
        if chain[0] is not op:
            self._put(path, chain)
        if chain[0] is op or slot.kernel in self.new:
            self._biases[path] = _spread(op, op.bias), _spread(op, chain[-1].bias)
            self.errors[path] = Distance()

    def _put(self, path: str, chain: Chain) -> None:
        op, slot = self._layers[path], self._slots[path]
        try:
            filled = slot.filled(self._standing_for(path, op, chain))
        except (Refused, RankfoldError):
            return
        for leaf, array in zip((slot.kernel, slot.bias), filled, strict=True):
            if leaf is not None and array is not None:
                old = self._values[leaf]
                self.new[leaf] = _like(array, old)

    def measure(self, site: Site, y: Any, other: Any) -> None:
        """Adds what a product gives in both runs to the error of its layer."""
        if site.path in self.errors:
            self.errors[site.path].add(site, y, other, *self._biases[site.path])

    def _standing_for(self, path: str, op: Op, chain: Chain) -> Op:
        """The layer with the weight of its chain.

        Raises:
            Refused: the framework cannot express the chain.
        """
        slot = self._slots[path]
        if len(chain) > 1 or chain[0].weight.shape != op.weight.shape:
            slot.form.stages(chain, slot.stack.count)
        made = with_weight(op, reconstruct(op, chain))
        return made if isinstance(made, Embedding) else replace(made, bias=chain[-1].bias)

    def joints(
        self,
        path: str,
        sites: Sequence[Site],
        inputs: Sequence[Any],
        targets: Sequence[Any],
        batches: Sequence[Batch],
    ) -> tuple[Joint | None, Joint | None]:
        """The sums over fitted and over held-out positions; None where there are none.

        Args:
            path: of the layer.
            sites: the product, for each batch.
            inputs: of the layer in the compressed model.
            targets: what the product gives in the original one.
            batches: the batches.
        """
        op = self._layers[path]
        whole = all(site.layout.groups.size == op.groups for site in sites)
        if isinstance(op, Embedding) or input_form(op) != "patches" or not whole:
            return None, None
        fit, held = Joints(), Joints()
        for site, x, y, batch in zip(sites, inputs, targets, batches, strict=True):
            view = site.view
            wanted = sampled(view, op, self._examples, 1)
            chosen = None
            if wanted is not None:
                chance = self._rng.random((view.images, view.positions), dtype=np.float32)
                chosen = np.argpartition(chance, wanted, axis=1)[:, :wanted]
            images = np.arange(view.images)
            number = batch.first + images * batch.examples // max(1, view.images)
            kept = is_held_out(number, self._examples)
            bias = _spread(op, op.bias)[site.layout.groups]
            terms = joint_terms(site, x, y, bias, chosen, kept)
            each = view.positions if wanted is None else wanted
            fit.add(terms[0], each * int((~kept).sum()))
            held.add(terms[1], each * int(kept.sum()))
        found = fit.made()
        return (None, None) if found is None else (found, held.made())


def _spread(op: Op, bias: Array | None) -> Array:
    """(groups, out/groups); zeros where there is no bias."""
    out = op.weight.shape[1] if isinstance(op, Embedding) else len(op.weight)
    flat = np.zeros(out, np.float32) if bias is None else bias
    return flat.reshape(op.groups, -1)


def _like(array: Array, old: Any) -> jax.Array:
    cast = np.asarray(array).astype(old.dtype)
    if isinstance(old, jax.Array) and old.committed:
        return put(cast, old.sharding)
    return jnp.asarray(cast)
