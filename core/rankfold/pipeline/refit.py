"""Sequential refit: each layer makes up for what the layers before it have lost.

Layer by layer, in the order of execution, a layer's weight is replaced by the regression of the
original layer's outputs y on the inputs x that the compressed model gives, with a ridge towards the
original weight W, B = (Σ_yx + λW)(Σ_xx + λ1)⁻¹, and decomposed under Σ_xx + λ1 (reduced-rank
regression). A ridge towards zero would be ruinous with few samples. Held-out examples decide, layer
by layer, whether the refit is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from rankfold.calibration.moments import Joint, LayerMoments
from rankfold.calibration.weighted_norm import POSITIONS, Metric, centred, rows_of
from rankfold.decompose.base import Decomposition
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.layer import Layer, shifted
from rankfold.linalg import Array
from rankfold.ops import Chain, Embedding, Op, by_group, of_groups, with_weight
from rankfold.ops.reference import reconstruct, relative_distance
from rankfold.pipeline.replacement import Decision, decide
from rankfold.plan.plan import LayerPlan
from rankfold.policies.base import Choice

RIDGES = (1e-2, 1e-1)
"""Relative to the mean eigenvalue of the inputs' moment; anything from 1e-3 to 1 serves."""
_ROUNDING = 5e-5
"""Of the held-out Σ ‖y‖²: errors are differences of sums of that size, which frameworks add up in
float32. Between PyTorch and XLA they were seen to differ by up to 1e-5 of it."""


class Refit:
    """Decides on the layers of a model as a run through it meets them.

    Args:
        chosen: the layers that are met, with what their policy chose.
        ops: these layers.
        sequential: whether weights are refitted; else the chains are those of the choices.
        seed: of the run.
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
        self._met: dict[str, _Met] = {}
        self._changed = False

    def visit(
        self,
        path: str,
        fit: Joint | None,
        held: Joint | None,
        groups: Sequence[int] | None = None,
        /,
    ) -> Chain:
        """The chain of a layer or of some of its groups; see `rankfold.adapters.base.Visit`."""
        layer, choice = self._chosen[path]
        layer.hold(self._ops[path])
        if path not in self._met:
            decision = decide(layer, choice)
            self._met[path] = _Met(decision, layer.op, decision.chain or (layer.op,))
            self._changed |= decision.chain is not None
        met = self._met[path]
        op, chain = met.part(groups)
        once = layer.calls in (None, 1)
        if self._sequential and not isinstance(op, Embedding):
            if not self._changed:  # until then the inputs are those of the original
                met.unchanged(fit, held)
            elif fit is None or held is None or not once:
                met.unknown = True  # its inputs are others now
            else:
                part = _Part(op, chain, groups, fit, held)
                metric = layer.spectrum.metric if groups is None else part.metric(layer.moments)
                if metric is not None:
                    best = self._refitted(layer, met.start.layer, part, metric)
                    met.take(best, part)
                    chain = best.chain
        layer.release()
        return chain

    def knows(self, path: str) -> bool:
        """Whether a layer was met."""
        return path in self._met

    def decision(self, path: str) -> Decision:
        """What was decided on a layer that was met."""
        return self._met[path].decision()

    def _refitted(self, layer: Layer, done: LayerPlan, part: _Part, metric: Metric) -> _Tried:
        """The best of the chain and its refits, by the held-out positions."""
        op, held = part.op, part.held
        best = _Tried(part.chain, _error(op, part.chain, held, metric), done.sensitivity)
        nothing = with_weight(op, np.zeros_like(op.weight))
        rounding = _ROUNDING * _error(op, (nothing,), held, metric)
        for ridge in RIDGES:
            try:
                made, sensitivity = self._regressed(
                    layer, op, done.method, done.ranks, metric, part.fit, ridge
                )
            except (Refused, RankfoldError, np.linalg.LinAlgError):
                continue  # with the chain before the refit
            error = _error(op, made, held, metric)
            noise = rounding + _standard_error(op, best.chain, made, held, metric)
            if error < best.error - noise:
                best = _Tried(made, error, sensitivity)
        return best

    def _regressed(
        self,
        layer: Layer,
        op: Op,
        method: str | None,
        ranks: tuple[int, ...],
        metric: Metric,
        fit: Joint,
        ridge: float,
    ) -> tuple[Chain, float | None]:
        target, inputs, mean = regression(op, fit, ridge)
        if method is None:
            return (target,), None
        measure = metric.with_inputs(inputs, mean)
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
class _Part:
    """A layer or some of its groups, with the chain before a refit and the sums to refit it to."""

    op: Op
    chain: Chain
    groups: Sequence[int] | None
    fit: Joint
    held: Joint

    def metric(self, moments: LayerMoments | None) -> Metric | None:
        """The measure of these groups, from the moments of the layer."""
        if moments is None or self.groups is None:
            return None
        return Metric(self.op, moments.of_groups(self.groups))

    def apart(self, chain: Chain) -> float:
        """Σ ‖y − ŷ‖² of a chain."""
        return _error(self.op, chain, self.fit, None) + _error(self.op, chain, self.held, None)


class _Met:
    """A layer that was met, as a whole or in part.

    Args:
        start: what was decided on it without a refit.
        op: the layer.
        chain: in its place so far.

    Attributes:
        start: as given.
        unknown: whether it met inputs that nothing is known of.
    """

    def __init__(self, start: Decision, op: Op, chain: Chain) -> None:
        self.start = start
        self.unknown = False
        self._op = op
        self._chain = chain
        self._own = False
        self._tried = self._refit = False
        self._apart = self._size = 0.0
        self._sensitivities: list[tuple[float, float]] = []

    def part(self, groups: Sequence[int] | None) -> tuple[Op, Chain]:
        """The layer and its chain in some groups; in all for None."""
        if groups is None:
            return self._op, self._chain
        total = self._op.groups
        chain = tuple(of_groups(stage, groups, total) for stage in self._chain)
        return of_groups(self._op, groups, total), chain

    def unchanged(self, fit: Joint | None, held: Joint | None) -> None:
        """Notes positions at which the output is that of the original."""
        self._size += sum(_size(joint) for joint in (fit, held) if joint is not None)

    def take(self, best: _Tried, part: _Part) -> None:
        """Takes the chain that is best in some groups."""
        self._tried = True
        self._size += _size(part.fit) + _size(part.held)
        self._apart += part.apart(best.chain)
        if best.sensitivity is not None:
            energy = float(np.square(part.op.weight, dtype=np.float64).sum())
            self._sensitivities.append((energy, best.sensitivity))
        if best.chain is part.chain:
            return
        self._refit = True
        if part.groups is None:
            self._chain = best.chain
            return
        if not self._own:
            self._chain, self._own = tuple(map(_copied, self._chain)), True
        total, groups = self._op.groups, list(part.groups)
        for stage, new in zip(self._chain, best.chain, strict=True):
            by_group(stage.weight, total)[groups] = by_group(new.weight, len(groups))
            if stage.bias is not None and new.bias is not None:
                by_group(stage.bias, total)[groups] = by_group(new.bias, len(groups))

    def decision(self) -> Decision:
        """What was decided on the layer so far."""
        start, done = self.start, self.start.layer
        changes: dict[str, object] = {}
        if self._tried:
            changes["refit"] = self._refit
            if done.method is not None or self._refit:
                share = max(self._apart, 0.0) / max(self._size, 1e-300)
                changes["predicted"] = float(np.sqrt(share))
        if self.unknown:
            changes["predicted"] = None
        if not self._refit:
            return replace(start, layer=msgspec.structs.replace(done, **changes))
        if done.method is not None:
            dense = reconstruct(self._op, self._chain)
            changes["error"] = relative_distance(self._op.weight, dense)
            changes["sensitivity"] = None
            if self._sensitivities:
                energies, values = zip(*self._sensitivities, strict=True)
                changes["sensitivity"] = float(np.average(values, weights=energies))
        return Decision(msgspec.structs.replace(done, **changes), self._op, self._chain)


def _copied(stage: Op) -> Op:
    """A stage whose arrays are its own."""
    if isinstance(stage, Embedding):
        return stage
    bias = None if stage.bias is None else np.array(stage.bias)
    return replace(stage, weight=np.array(stage.weight, order="C"), bias=bias)


def _size(joint: Joint) -> float:
    """Σ ‖y‖² over the positions of a sum."""
    return float(np.trace(joint.yy, axis1=1, axis2=2).sum())


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
        xx = centred(xx, mean)
        yx = yx - target[:, :, None] * mean[:, None, :]
    size = xx.shape[1]
    level = np.trace(xx, axis1=1, axis2=2)[:, None, None] / size
    if not (np.isfinite(level).all() and (level > 0.0).all()):
        raise Refused("its inputs on the calibration data never vary or are not finite")
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
    value = float(np.trace(_residuals(op, chain, chain, joint, metric), axis1=1, axis2=2).sum())
    if not np.isfinite(value):
        raise RankfoldError("the activations on the calibration data are not finite")
    return value


def _standard_error(op: Op, chain: Chain, other: Chain, joint: Joint, metric: Metric) -> float:
    """That of the difference of the errors of two chains, as the positions are a sample.

    With residuals r, s of the two the difference is Σ uᵀ v, where u = r − s and v = r + s. For
    normal residuals the variance of uᵀ v is tr(U V) + tr(C C) with U = E[u uᵀ], V = E[v vᵀ] and
    C = E[u vᵀ] (Isserlis), all of which the sums know. Positions of one example are alike: they
    count as `POSITIONS` samples at most. A refit that gains less than this may as well have lost.
    """
    rr = _residuals(op, chain, chain, joint, metric) / joint.count
    ss = _residuals(op, other, other, joint, metric) / joint.count
    rs = _residuals(op, chain, other, joint, metric) / joint.count
    sr = rs.swapaxes(1, 2)
    uu, vv, uv = rr + ss - rs - sr, rr + ss + rs + sr, rr + rs - sr - ss
    variance = float(np.vdot(uu, vv)) + float(np.vdot(uv, uv.swapaxes(1, 2)))
    alike = max(1.0, metric.uses / POSITIONS)
    return float(np.sqrt(max(0.0, variance) * joint.count * alike))


def _residuals(op: Op, chain: Chain, other: Chain, joint: Joint, metric: Metric | None) -> Array:
    """Σ G½ (y − ŷ)(y − ŷ')ᵀ G½ of two chains over the positions, (groups, out, out)."""
    rows, bias = _affine(op, chain)
    rows_other, bias_other = _affine(op, other)
    cross = np.matmul(rows, joint.yx.swapaxes(1, 2)) + bias[:, :, None] * joint.y[:, None, :]
    other_cross = np.matmul(joint.yx, rows_other.swapaxes(1, 2))
    other_cross = other_cross + joint.y[:, :, None] * bias_other[:, None, :]
    moved = np.matmul(rows, joint.x[:, :, None])[:, :, 0]
    moved_other = np.matmul(rows_other, joint.x[:, :, None])[:, :, 0]
    both = np.matmul(np.matmul(rows, joint.xx), rows_other.swapaxes(1, 2))
    both = both + moved[:, :, None] * bias_other[:, None, :]
    both = both + bias[:, :, None] * moved_other[:, None, :]
    both = both + joint.count * bias[:, :, None] * bias_other[:, None, :]
    total: Array = joint.yy - cross - other_cross + both
    if metric is None:
        return total
    return metric.to_loss(metric.to_loss(total).swapaxes(1, 2)).swapaxes(1, 2)


def _affine(op: Op, chain: Chain) -> tuple[Array, Array]:
    """The rows (groups, out, d) and the bias (groups, out) that a chain stands for."""
    rows = rows_of(with_weight(op, reconstruct(op, chain)))
    bias = chain[-1].bias
    return rows, np.zeros(rows.shape[:2]) if bias is None else bias.reshape(rows.shape[:2])
