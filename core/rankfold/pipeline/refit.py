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

from rankfold import linalg
from rankfold.calibration.moments import RegressionSums
from rankfold.decompose.interpolative import interpolated_like
from rankfold.faults import of_adapter
from rankfold.layers.blas_threads import threads_for
from rankfold.layers.layer import Layer
from rankfold.linalg import Array
from rankfold.ops import Chain, Embedding, Op, by_group, of_groups
from rankfold.ops.interpolation import pivots_of_chain
from rankfold.ops.ownership import copied
from rankfold.ops.reference import reconstruct, relative_distance
from rankfold.pipeline.allocation import Task
from rankfold.pipeline.refit_choice import LayerPart, RefitCandidate, best_refit
from rankfold.pipeline.refit_problem import (
    LaterStages,
    RefitProblem,
    WholeLayer,
    first_basis,
    is_wide,
)
from rankfold.pipeline.replacement import Decision, decide
from rankfold.policies.base import Choice
from rankfold.progress import Advance, progress


def is_settled(task: Task, layer: Layer, choice: Choice) -> bool:
    """Return whether a run on the calibration data has nothing to add to a choice.

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
    layers: dict[str, tuple[Layer, Choice]] = {}
    ops: dict[str, Op] = {}
    for path, item in chosen.items():
        if isinstance(item, Decision):
            yield item
        else:
            layer = task.layers.layers[path]
            # The ops are held through the run, which may meet the layers in any order; spectra and
            # candidates are made when a layer is met.
            layers[path], ops[path] = (layer, item), layer.op
            layer.release()
    visitor = Refit(layers, ops, sequential=sequential, seed=task.session.settings.seed)
    errors = _run_paired(task, visitor, layers, ops, sequential=sequential)
    for path, (layer, choice) in layers.items():
        with threads_for(layer.smaller_side):
            # A layer that was never called is decided on as without data: nothing is known of its
            # inputs.
            decision = visitor.decision(path) if visitor.knows(path) else decide(layer, choice)
        visitor.forget(path)
        if path in errors and decision.chain is not None:
            measured = msgspec.structs.replace(decision.layer, measured=errors[path])
            decision = Decision(measured, decision.op, decision.chain)
        yield decision


def _run_paired(
    task: Task,
    visitor: Refit,
    layers: Mapping[str, tuple[Layer, Choice]],
    ops: Mapping[str, Op],
    *,
    sequential: bool,
) -> Mapping[str, float]:
    """Let the visitor decide on each layer as the models come to it; return the measured errors."""
    session, batches = task.session, task.calibrated.batches
    calibrates = session.can.calibrates
    assert batches is not None
    assert calibrates is not None
    with (
        progress("refitting" if sequential else "measuring", len(layers)) as advance,
        of_adapter(session.adapter),
    ):
        return calibrates.run_paired(
            session.model,
            batches,
            ops,
            _Visits(visitor, layers, ops, advance),
            sequential=sequential,
            rng=np.random.default_rng(session.settings.seed),
        )


@dataclass(frozen=True, eq=False)
class _Visits:
    """Visits of a paired run, which a refit decides on; a `LayerVisitor`."""

    refit: Refit
    layers: Mapping[str, tuple[Layer, Choice]]
    ops: Mapping[str, Op]
    advance: Advance

    def basis(self, path: str, groups: Sequence[int] | None = None, /) -> Array | None:
        """Return the basis that the inputs are projected on."""
        with threads_for(self.layers[path][0].smaller_side):
            return self.refit.basis(path, groups)

    def __call__(
        self,
        path: str,
        fit: RegressionSums | None,
        validation: RegressionSums | None,
        groups: Sequence[int] | None = None,
        /,
    ) -> Chain:
        """Return the chain of a layer or of some of its groups."""
        if not self.refit.visits(path):
            self.advance(path)
        with threads_for(self.layers[path][0].smaller_side):
            chain = self.refit.visit(path, fit, validation, groups)
        # The adapter may keep the arrays in modules; those of a candidate are shared and must not
        # change. The op itself is the sign that the layer stays.
        return chain if chain[0] is self.ops[path] else tuple(map(copied, chain))


class Refit:
    """Decides on the layers of a model as a paired run calls them.

    Args:
        chosen: the layers to visit, with what their policy chose.
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
        self._visited: dict[str, _VisitedLayer] = {}
        self._changed = False

    def basis(self, path: str, groups: Sequence[int] | None = None, /) -> Array | None:
        """Return what the first stage of a wide layer projects on, if that stage stays."""
        visited = self._begun(path)
        op, chain = visited.part(groups)
        if self._sequential and self._keeps_first(path, op):
            return first_basis(op, chain)
        return None

    def _begun(self, path: str) -> _VisitedLayer:
        """Return a layer, decided on when it is first asked for, by whatever groups."""
        # The ranks and the start are those of the layer.
        layer, choice = self._chosen[path]
        layer.set_op(self._ops[path])
        if path not in self._visited:
            decision = decide(layer, choice)
            self._visited[path] = _VisitedLayer(decision, layer.op, decision.chain or (layer.op,))
            self._changed |= decision.chain is not None
        return self._visited[path]

    def _keeps_first(self, path: str, op: Op) -> bool:
        """Return whether the stages after the first are all that is refitted of a layer."""
        layer, _ = self._chosen[path]
        method = self._visited[path].start.layer.method
        return method is not None and layer.methods[method].regresses_later_stages and is_wide(op)

    def visit(
        self,
        path: str,
        fit: RegressionSums | None,
        validation: RegressionSums | None,
        groups: Sequence[int] | None = None,
        /,
    ) -> Chain:
        """Return the chain of a layer or of some of its groups, as a `LayerVisitor`."""
        layer, _ = self._chosen[path]
        visited = self._begun(path)
        visited.visits += 1
        op, chain = visited.part(groups)
        # The sums of a layer that is called several times mix its calls, and a chain takes its
        # place at the first of them: what the later ones get is not known then.
        called_once = layer.calls in (None, 1)
        if self._sequential and not isinstance(op, Embedding):
            if not self._changed:  # before the first chain the inputs are those of the original
                visited.unchanged(fit, validation)
            elif fit is None or validation is None or not called_once:
                visited.unknown = True  # its inputs are others now
            else:
                part = LayerPart(op, chain, groups, fit, validation)
                problem = self._problem(path, part)
                if problem is not None:
                    best = best_refit(problem, part, visited.start.layer.sensitivity)
                    if best.chain is not part.chain:
                        # Later stages are refitted as ordinary ones. To interpolate them last
                        # changes nothing of what they compute.
                        best = replace(best, chain=interpolated_like(best.chain, part.chain))
                    visited.take(best, part)
                    chain = best.chain
        layer.release()
        return chain

    def knows(self, path: str) -> bool:
        """Return whether a layer was decided on."""
        return path in self._visited

    def visits(self, path: str) -> int:
        """Return how often a layer was visited."""
        return self._visited[path].visits if path in self._visited else 0

    def decision(self, path: str) -> Decision:
        """Return the decision on a layer that was visited."""
        return self._visited[path].decision()

    def forget(self, path: str) -> None:
        """Let go of the chain of a layer, whose module is built next."""
        self._visited.pop(path, None)

    def _problem(self, path: str, part: LayerPart) -> RefitProblem | None:
        """Return what to solve for; None without a measure of errors."""
        layer, _ = self._chosen[path]
        done = self._visited[path].start.layer
        metric = layer.spectrum.metric if part.groups is None else part.metric(layer.moments)
        if metric is None:
            return None
        method = None if done.method is None else layer.methods[done.method]
        if method is not None and self._keeps_first(path, part.op):
            return LaterStages(part.op, method, part.chain, metric, part.fit, part.validation)
        return WholeLayer(
            part.op,
            method,
            done.ranks,
            metric,
            part.fit,
            part.validation,
            layer.placement,
            self._seed,
        )


class _VisitedLayer:
    """A layer that was visited, as a whole or group by group.

    Args:
        start: what was decided on it without a refit.
        op: the layer.
        chain: in its place so far.

    Attributes:
        start: as given.
        unknown: whether it was called with inputs that nothing is known of.
        visits: how often it was visited.
    """

    def __init__(self, start: Decision, op: Op, chain: Chain) -> None:
        self.start = start
        self.unknown = False
        self.visits = 0
        self._op = op
        self._chain = chain
        self._is_copied = False
        self._tried = self._refit = False
        self._error = self._size = 0.0
        self._sensitivities: list[tuple[float, float]] = []

    def part(self, groups: Sequence[int] | None) -> tuple[Op, Chain]:
        """Return the layer and its chain in some groups; in all for None."""
        if groups is None:
            return self._op, self._chain
        total = self._op.groups
        chain = tuple(of_groups(stage, groups, total) for stage in self._chain)
        return of_groups(self._op, groups, total), chain

    def unchanged(self, fit: RegressionSums | None, validation: RegressionSums | None) -> None:
        """Count positions at which the output is that of the original."""
        self._size += sum(_size(sums) for sums in (fit, validation) if sums is not None)

    def take(self, best: RefitCandidate, part: LayerPart) -> None:
        """Put the best chain of some groups in place."""
        self._tried = True
        self._size += _size(part.fit) + _size(part.validation)
        self._error += best.unweighted
        if best.sensitivity is not None:
            energy = linalg.energy(part.op.weight)
            # Of a stack each group has a model of its own; theirs are weighed by the energies of
            # the weights.
            self._sensitivities.append((energy, best.sensitivity))
        if best.chain is part.chain:
            return
        self._refit = True
        # The chain before the refit is needed no longer: one chain of each layer is held.
        self.start = replace(self.start, chain=None)
        if part.groups is None:
            self._chain = best.chain
            return
        if not self._is_copied:  # the groups of a stack are met one by one: written into a copy
            self._chain, self._is_copied = tuple(map(_copied, self._chain)), True
        self._chain = tuple(
            _with_groups(stage, new, self._op.groups, part.groups)
            for stage, new in zip(self._chain, best.chain, strict=True)
        )

    def decision(self) -> Decision:
        """Return the decision on the layer, with everything it was refitted to so far."""
        start, done = self.start, self.start.layer
        changes: dict[str, object] = {}
        if self._tried:
            changes["refit"] = self._refit
            if done.method is not None or self._refit:
                share = max(self._error, 0.0) / max(self._size, 1e-300)
                changes["predicted"] = float(np.sqrt(share))
        if self.unknown:
            changes["predicted"] = None
        if not self._refit:
            return replace(start, layer=msgspec.structs.replace(done, **changes))
        if done.method is not None:
            # Relative to the weight that the layer had, so a refit may well have a larger error
            # than none: the weight moves on purpose, and `predicted` and `measured` say whether
            # that was right.
            dense = reconstruct(self._op, self._chain)
            changes["error"] = relative_distance(self._op.weight, dense)
            changes["pivots"] = pivots_of_chain(self._chain)
            changes["sensitivity"] = None
            if self._sensitivities:
                energies, values = zip(*self._sensitivities, strict=True)
                changes["sensitivity"] = float(np.average(values, weights=energies))
        return Decision(msgspec.structs.replace(done, **changes), self._op, self._chain)


def _copied(stage: Op) -> Op:
    """Copy a stage, so that its arrays are its own."""
    if isinstance(stage, Embedding):
        return stage
    bias = None if stage.bias is None else linalg.copied(stage.bias)
    return replace(stage, weight=linalg.copied(stage.weight), bias=bias)


def _with_groups(stage: Op, new: Op, total: int, groups: Sequence[int]) -> Op:
    """Write some groups of a layer into a stage that has all, in place where arrays can be."""

    def written(array: Array, part: Array) -> Array:
        whole = linalg.put(by_group(array, total), groups, by_group(part, len(groups)))
        return whole.reshape(array.shape)

    if isinstance(stage, Embedding):
        return stage
    bias = stage.bias
    if bias is not None and new.bias is not None:
        bias = written(bias, new.bias)
    return replace(stage, weight=written(stage.weight, new.weight), bias=bias)


def _size(sums: RegressionSums) -> float:
    """Σ ‖y‖² over the positions of a sum."""
    return float(sums.square.sum())
