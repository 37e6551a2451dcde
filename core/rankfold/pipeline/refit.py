"""Sequential refit: each layer makes up for what the layers before it have lost.

Layer by layer, in the order of execution, a layer's weight is replaced by the regression of the
original layer's outputs y on the inputs x that the compressed model gives, with a ridge towards the
original weight W, B = (Σ_yx + λW)(Σ_xx + λ1)⁻¹, and decomposed under Σ_xx + λ1 (reduced-rank
regression). A ridge towards zero would be ruinous with few samples. Held-out examples decide, layer
by layer, whether the refit is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from rankfold.calibration.moments import LayerMoments, RegressionSums
from rankfold.calibration.weighted_norm import Metric, rows_of
from rankfold.decompose.base import Decomposition
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import RankfoldError, Refused
from rankfold.faults import of_adapter
from rankfold.layers.layer import Layer, shifted
from rankfold.layers.parallel import limited
from rankfold.ops import Chain, Embedding, Op, by_group, of_groups, with_weight
from rankfold.ops.ownership import copied
from rankfold.ops.reference import reconstruct, relative_distance
from rankfold.pipeline.allocation import Task
from rankfold.pipeline.replacement import Decision, decide
from rankfold.pipeline.ridge_regression import regression, squared_error, standard_error
from rankfold.plan.plan import LayerPlan
from rankfold.policies.base import Choice
from rankfold.progress import progress

RIDGES = (1e-2, 1e-1)
"""Relative to the mean eigenvalue of the inputs' moment; anything from 1e-3 to 1 serves."""
_ROUNDING = 5e-5
"""Of the held-out Σ ‖y‖²: errors are differences of sums of that size, which frameworks add up in
float32. Between PyTorch and XLA they were seen to differ by up to 1e-5 of it."""


def is_settled(task: Task, layer: Layer, choice: Choice) -> bool:
    """Whether a run on the calibration data has nothing to add to a choice.

    A layer that a policy leaves is refitted all the same; one that no policy was asked about stays
    as it is, and so does a table, whose inputs are those of the original.
    """
    return choice.method is None and (bool(task.left_out(layer)) or isinstance(layer.op, Embedding))


def refitted(
    task: Task, chosen: Mapping[str, Decision | Choice], *, sequential: bool
) -> Iterator[Decision]:
    """Decide on layers while the model and its compressed self run on the calibration data.

    Args:
        task: what the policies were asked.
        chosen: by path, what is decided already, and the choices to carry out in the run.
        sequential: whether layers are refitted; else their chains are measured only.

    Raises:
        RankfoldError: the model fails on a batch.
    """
    session, batches, calibrates = (
        task.session,
        task.calibrated.batches,
        task.session.can.calibrates,
    )
    assert batches is not None
    assert calibrates is not None
    layers: dict[str, tuple[Layer, Choice]] = {}
    ops: dict[str, Op] = {}
    for path, item in chosen.items():
        if isinstance(item, Decision):
            yield item
        else:
            layer = task.layers.layers[path]
            layers[path], ops[path] = (layer, item), layer.op
            layer.release()
    visitor = Refit(layers, ops, sequential=sequential, seed=session.settings.seed)
    with progress("refitting" if sequential else "measuring", len(layers)) as advance:

        def visit(
            path: str,
            fit: RegressionSums | None,
            held: RegressionSums | None,
            groups: Sequence[int] | None = None,
            /,
        ) -> Chain:
            if not visitor.knows(path):
                advance(path)
            with limited(task.layers.threads):
                chain = visitor.visit(path, fit, held, groups)
            return chain if chain[0] is ops[path] else tuple(map(copied, chain))

        with of_adapter(session.adapter):
            errors = calibrates.run_paired(
                session.model,
                batches,
                ops,
                visit,
                sequential=sequential,
                rng=np.random.default_rng(session.settings.seed),
            )
    for path, (layer, choice) in layers.items():
        with limited(task.layers.threads):
            decision = visitor.decision(path) if visitor.knows(path) else decide(layer, choice)
        if path in errors and decision.chain is not None:
            measured = msgspec.structs.replace(decision.layer, measured=errors[path])
            decision = Decision(measured, decision.op, decision.chain)
        yield decision


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
        fit: RegressionSums | None,
        held: RegressionSums | None,
        groups: Sequence[int] | None = None,
        /,
    ) -> Chain:
        """The chain of a layer or of some of its groups, as a `LayerVisitor`."""
        layer, choice = self._chosen[path]
        layer.set_op(self._ops[path])
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
        best = _Tried(part.chain, squared_error(op, part.chain, held, metric), done.sensitivity)
        nothing = with_weight(op, np.zeros_like(op.weight))
        rounding = _ROUNDING * squared_error(op, (nothing,), held, metric)
        for ridge in RIDGES:
            try:
                made, sensitivity = self._regressed(
                    layer, op, done.method, done.ranks, metric, part.fit, ridge
                )
            except (Refused, RankfoldError, np.linalg.LinAlgError):
                continue  # with the chain before the refit
            error = squared_error(op, made, held, metric)
            noise = rounding + standard_error(op, best.chain, made, held, metric)
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
        fit: RegressionSums,
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
    fit: RegressionSums
    held: RegressionSums

    def metric(self, moments: LayerMoments | None) -> Metric | None:
        """The measure of these groups, from the moments of the layer."""
        if moments is None or self.groups is None:
            return None
        return Metric(self.op, moments.of_groups(self.groups))

    def apart(self, chain: Chain) -> float:
        """Σ ‖y − ŷ‖² of a chain."""
        return squared_error(self.op, chain, self.fit, None) + squared_error(
            self.op, chain, self.held, None
        )


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

    def unchanged(self, fit: RegressionSums | None, held: RegressionSums | None) -> None:
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


def _size(joint: RegressionSums) -> float:
    """Σ ‖y‖² over the positions of a sum."""
    return float(np.trace(joint.yy, axis1=1, axis2=2).sum())


@dataclass(frozen=True, eq=False)
class _Tried:
    chain: Chain
    error: float
    sensitivity: float | None = None
