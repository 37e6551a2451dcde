"""Sequential refit: each layer makes up for what the layers before it have lost.

Layer by layer, in the order of execution, a layer's weight is replaced by the regression of the
original layer's outputs y on the inputs x that the compressed model gives, with a ridge towards the
original weight W, B = (Σ_yx + λW)(Σ_xx + λ1)⁻¹, and decomposed under Σ_xx + λ1 (reduced-rank
regression). A ridge towards zero would be ruinous with few samples. Held-out examples decide, layer
by layer, whether the refit is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from rankfold.candidates import Layer, shifted
from rankfold.contracts import Choice, Decomposition
from rankfold.decision import Decision, decide
from rankfold.errors import RankfoldError, Refused
from rankfold.metric import Metric, rows_of
from rankfold.moments import Joint
from rankfold.ops import Array, Chain, Embedding, Op, with_weight
from rankfold.reference import reconstruct
from rankfold.spectrum import Spectrum
from rankfold.verify import relative_distance

RIDGES = (1e-2, 1e-1)
"""Relative to the mean eigenvalue of the inputs' moment; anything from 1e-3 to 1 serves."""
_ROUNDING = 1e-6


class Refit:
    """Decides on the layers of a model as a run through it meets them.

    Args:
        chosen: the layers that are met, with what their policy chose.
        ops: these layers.
        sequential: whether weights are refitted; else the chains are those of the choices.
        seed: of the run.

    Attributes:
        decisions: by path, what was decided so far.
    """

    def __init__(
        self,
        chosen: Mapping[str, tuple[Layer, Choice]],
        ops: Mapping[str, Op],
        *,
        sequential: bool,
        seed: int,
    ) -> None:
        self._chosen = chosen
        self._ops = ops
        self._sequential = sequential
        self._seed = seed
        self.decisions: dict[str, Decision] = {}
        self._changed = False

    def visit(self, path: str, fit: Joint | None, held: Joint | None) -> Chain:
        """The chain of a layer, from the sums over fitted and over held-out positions."""
        layer, choice = self._chosen[path]
        layer.hold(self._ops[path])
        decision = decide(layer, choice)
        op = layer.op
        chain: Chain = decision.chain or (op,)
        once = layer.calls in (None, 1)
        self._changed |= decision.chain is not None
        if self._sequential and self._changed:  # until then the inputs are those of the original
            if fit is not None and held is not None and once:
                decision, chain = self._refitted(layer, decision, chain, fit, held)
            elif not isinstance(op, Embedding):  # its inputs are others now
                unknown = msgspec.structs.replace(decision.layer, predicted=None)
                decision = replace(decision, layer=unknown)
        self.decisions[path] = decision
        layer.release()
        return chain

    def _refitted(
        self, layer: Layer, decision: Decision, chain: Chain, fit: Joint, held: Joint
    ) -> tuple[Decision, Chain]:
        op, metric, done = layer.op, layer.spectrum.metric, decision.layer
        if metric is None:
            return decision, chain
        best = _Tried(chain, _error(op, chain, held, metric))
        start = best
        nothing = with_weight(op, np.zeros_like(op.weight))
        rounding = _ROUNDING * _error(op, (nothing,), held, metric)
        for ridge in RIDGES:
            try:
                made, sensitivity = self._regressed(
                    layer, done.method, done.ranks, metric, fit, ridge
                )
            except (Refused, np.linalg.LinAlgError):
                continue
            error = _error(op, made, held, metric)
            if error < best.error - rounding:
                best = _Tried(made, error, sensitivity)
        chain = best.chain
        size = float(np.trace(fit.yy + held.yy, axis1=1, axis2=2).sum())
        apart = _error(op, chain, fit, None) + _error(op, chain, held, None)
        changes: dict[str, object] = {"refit": best is not start}
        if done.method is not None or best is not start:
            changes["predicted"] = float(np.sqrt(max(apart, 0.0) / max(size, 1e-300)))
        if best is start:
            return replace(decision, layer=msgspec.structs.replace(done, **changes)), chain
        if done.method is not None:
            changes["error"] = relative_distance(op.weight, reconstruct(op, chain))
            changes["sensitivity"] = best.sensitivity
        return Decision(msgspec.structs.replace(done, **changes), op, chain), chain

    def _regressed(
        self,
        layer: Layer,
        method: str | None,
        ranks: tuple[int, ...],
        metric: Metric,
        fit: Joint,
        ridge: float,
    ) -> tuple[Chain, float | None]:
        op = layer.op
        target, inputs, mean = regression(op, fit, ridge)
        if method is None:
            return (target,), None
        measure = Metric.of_inputs(op, inputs, mean, metric)
        spectrum = Spectrum(target, measure)
        rng = np.random.default_rng(self._seed)
        decomposition: Decomposition = layer.methods[method]
        factored = decomposition.decompose(
            target, ranks, spectrum=spectrum, placement=layer.placement, rng=rng
        )
        if not all(np.isfinite(stage.weight).all() for stage in factored.chain):
            raise Refused(f"{method} gave values that are not finite")
        lost = rows_of(target) - rows_of(with_weight(op, reconstruct(op, factored.chain)))
        return shifted(factored.chain, measure, lost), factored.sensitivity


@dataclass(frozen=True, eq=False)
class _Tried:
    chain: Chain
    error: float
    sensitivity: float | None = None


def regression(op: Op, fit: Joint, ridge: float) -> tuple[Op, Array, Array | None]:
    """The layer with its weight refitted, towards the weight it has.

    Args:
        op: the layer.
        fit: sums over positions.
        ridge: λ, relative to the mean eigenvalue of the moment of the inputs.

    Returns:
        The op, the moment of its inputs (groups, d, d) with the ridge, and their mean where the
        layer has a bias, which then takes up the difference of the means.
    """
    if isinstance(op, Embedding):
        raise Refused("a table look-up has the inputs of the original")
    weight = rows_of(op)
    xx, yx = fit.xx / fit.count, fit.yx / fit.count
    mean = None
    if op.bias is not None:
        mean, target = fit.x / fit.count, fit.y / fit.count
        xx = xx - mean[:, :, None] * mean[:, None, :]
        yx = yx - target[:, :, None] * mean[:, None, :]
    size = xx.shape[1]
    level = np.trace(xx, axis1=1, axis2=2)[:, None, None] / size
    if not (np.isfinite(level).all() and (level > 0.0).all()):
        raise Refused("its inputs on the calibration data are all zero or not finite")
    xx = xx + ridge * level * np.eye(size)
    solved = np.linalg.solve(xx, (yx + ridge * level * weight).swapaxes(1, 2)).swapaxes(1, 2)
    dtype = op.weight.dtype
    made = with_weight(op, solved.reshape(op.weight.shape).astype(dtype))
    if mean is not None and op.bias is not None:
        bias = (target - np.einsum("god,gd->go", solved, mean)).reshape(-1)
        made = replace(made, bias=bias.astype(op.bias.dtype))
    return made, xx, mean


def _error(op: Op, chain: Chain, joint: Joint, metric: Metric | None) -> float:
    """Σ (y − ŷ)ᵀ G (y − ŷ) of a chain over the positions of a sum; G is 1 without a metric."""
    rows = rows_of(with_weight(op, reconstruct(op, chain)))
    last = chain[-1]
    bias = np.zeros(rows.shape[:2]) if last.bias is None else last.bias.reshape(rows.shape[:2])
    cross = np.matmul(joint.yx, rows.swapaxes(1, 2)) + joint.y[:, :, None] * bias[:, None, :]
    moved = np.matmul(rows, joint.x[:, :, None])[:, :, 0]
    own = np.matmul(np.matmul(rows, joint.xx), rows.swapaxes(1, 2))
    own = own + moved[:, :, None] * bias[:, None, :] + bias[:, :, None] * moved[:, None, :]
    own = own + joint.count * bias[:, :, None] * bias[:, None, :]
    total = joint.yy - cross - cross.swapaxes(1, 2) + own
    if metric is None:
        return float(np.trace(total, axis1=1, axis2=2).sum())
    half = metric.to_loss(total).swapaxes(1, 2)
    value = float(np.trace(metric.to_loss(half), axis1=1, axis2=2).sum())
    if not np.isfinite(value):
        raise RankfoldError("the activations on the calibration data are not finite")
    return value
