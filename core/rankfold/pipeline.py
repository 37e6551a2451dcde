"""plan, apply, compress: the only place where the steps are put in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rankfold.candidates import Layer
from rankfold.contracts import Adapter, Choice, Decomposition, Placement, Policy, Trace
from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Chain, Extent, Op, describe
from rankfold.patterns import check_patterns, matches
from rankfold.plan import LayerPlan, Plan
from rankfold.progress import Advance, progress
from rankfold.registry import registry
from rankfold.spectrum import magnitude
from rankfold.verify import check_chain

METHODS = ("svd", "tucker2", "spatial_svd", "channel_svd")
"""The default methods, in order of preference: those with a closed form or as good as one."""


@dataclass(frozen=True)
class Compressed:
    """A compressed model and the plan it was made by.

    Attributes:
        model: the smaller model.
        plan: what was done to each layer, with measured errors.
    """

    model: Any
    plan: Plan

    def report(self) -> str:
        """What was done to each layer and what it saves, as a table."""
        return str(self.plan)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes plan.json and weights.safetensors; see `rankfold.load`.

        Raises:
            RankfoldError: the folder cannot be written, or holds something else.
        """
        from rankfold.checkpoint import save

        save(self, Path(folder))


def plan(
    model: Any,
    policy: Policy,
    *,
    inputs: Any = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    overrides: Mapping[str, Policy] | None = None,
    placement: Placement = "balanced",
    seed: int = 0,
) -> Plan:
    """What would be done to each layer of a model, and why.

    Args:
        model: a model of any framework with an adapter; it is not modified.
        policy: chooses the ranks.
        inputs: example inputs of one forward pass: a tensor, a tuple or list of positional or a
            mapping of keyword arguments. With them the plan counts MACs.
        methods: names of the allowed decompositions in order of preference; None for "svd",
            "tucker2", "spatial_svd" and "channel_svd".
        include: glob patterns of layer paths to consider; None for all.
        exclude: glob patterns of layer paths to leave alone.
        overrides: policies for some layers, by glob pattern; the first match counts.
        placement: "balanced" spreads the scale of a weight evenly over its chain, "classical"
            leaves it in one stage.
        seed: of all randomness.

    Raises:
        RankfoldError: no adapter knows the model, a method is unknown, a pattern matches no layer,
            a rank is out of range, or the model fails on the inputs.
    """
    adapter = registry().adapter(model)
    size = adapter.size(model)
    request = _Request(
        adapter, model, policy, inputs, methods, include, exclude, overrides, placement, seed, size
    )
    decided = [decision.layer for decision in request.decisions()]
    return request.plan_of(decided)


def compress(
    model: Any,
    policy: Policy,
    *,
    inputs: Any = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    overrides: Mapping[str, Policy] | None = None,
    placement: Placement = "balanced",
    seed: int = 0,
    inplace: bool = False,
) -> Compressed:
    """Plans and applies in one go, decomposing each layer once.

    Args:
        model: as for `plan`.
        policy: as for `plan`.
        inputs: as for `plan`.
        methods: as for `plan`.
        include: as for `plan`.
        exclude: as for `plan`.
        overrides: as for `plan`.
        placement: as for `plan`.
        seed: as for `plan`.
        inplace: modify the model itself instead of a copy.

    Raises:
        RankfoldError: as for `plan`.
    """
    adapter = registry().adapter(model)
    size = adapter.size(model)
    request = _Request(
        adapter, model, policy, inputs, methods, include, exclude, overrides, placement, seed, size
    )
    modules: dict[str, Any] = {}
    decided = [_built(adapter, model, seed, d, modules) for d in request.decisions()]
    small = adapter.replace(model, modules, inplace=inplace)
    return Compressed(small, request.plan_of(decided))


def apply(model: Any, plan: Plan, *, inputs: Any = None, inplace: bool = False) -> Compressed:
    """Does to a model what a plan says.

    Args:
        model: the model the plan was made for, or one of the same structure with other weights.
        plan: from `plan`, from JSON or made by hand.
        inputs: example inputs, to count MACs anew; None keeps the plan's count of them.
        inplace: modify the model itself instead of a copy.

    Returns:
        The compressed model and the plan with the errors measured on this model. A layer that must
        be left alone in this model (tied, for example) is, with that reason.

    Raises:
        RankfoldError: the plan names a layer that the model does not have or that has another
            shape, an unknown method, or a rank out of range; the model is then unchanged.
    """
    adapter = registry().adapter(model)
    layers = adapter.layers(model)
    wanted = {layer.path: layer for layer in plan.layers}
    check_planned(wanted.values(), layers)
    names = {layer.method for layer in plan.replaced if layer.method is not None}
    known = registry().methods(sorted(names)) if names else {}
    trace = None if inputs is None else adapter.trace(model, inputs)
    modules: dict[str, Any] = {}
    decided: list[LayerPlan] = []
    with progress("decomposing", len(layers)) as advance:
        for path, kind in layers.items():
            advance(path)
            given = wanted.get(path, LayerPlan(path=path, op=kind, reason="not in the plan"))
            if given.method is None:
                decided.append(given)
                continue
            read = partial(_read, adapter, model, path, trace)
            choice = Choice(given.method, given.ranks, given.reason)
            try:
                check_same(given, read())
                layer = Layer(
                    (path,), read, known, _extents(trace, path), plan.placement, plan.seed
                )
                decision = _decide(layer, choice)
            except Refused as refused:
                decided.append(LayerPlan(path=path, op=kind, reason=refused.reason))
                continue
            if trace is None:
                decision = decision.with_macs(given.macs)
            decided.append(_built(adapter, model, plan.seed, decision, modules))
    small = adapter.replace(model, modules, inplace=inplace)
    return Compressed(small, msgspec.structs.replace(plan, layers=tuple(decided)))


def check_planned(planned: Iterable[LayerPlan], layers: Mapping[str, str]) -> None:
    """Sees to it that a model has every layer of a plan.

    Raises:
        RankfoldError: naming the first layer that it lacks.
    """
    for layer in planned:
        if layer.path not in layers:
            raise RankfoldError(
                f"layer {layer.path!r} of the plan is not in the model; the plan is for another"
            )


def check_same(planned: LayerPlan, op: Op) -> None:
    """Sees to it that a layer is the one that was planned.

    Raises:
        RankfoldError: naming the layer and what it is.
    """
    if planned.op and planned.op != describe(op):
        raise RankfoldError(
            f"layer {planned.path!r} is {describe(op)}, but the plan is for {planned.op}"
        )


@dataclass(frozen=True, eq=False)
class _Decision:
    """What is done to one layer, with the chain where it is decomposed."""

    layer: LayerPlan
    op: Op | None = None
    chain: Chain | None = None

    def with_macs(self, pair: tuple[int, int] | None) -> _Decision:
        return _Decision(msgspec.structs.replace(self.layer, macs=pair), self.op, self.chain)


@dataclass(frozen=True, eq=False)
class _Request:
    """The arguments of `plan` and `compress`, checked, and the walk over the layers."""

    adapter: Adapter
    model: Any
    policy: Policy
    inputs: Any
    methods: Sequence[str] | None
    include: str | Sequence[str] | None
    exclude: str | Sequence[str]
    overrides: Mapping[str, Policy] | None
    placement: Placement
    seed: int
    size: int

    def __post_init__(self) -> None:
        if self.placement not in ("balanced", "classical"):
            raise RankfoldError(f"placement {self.placement!r}; use 'balanced' or 'classical'")
        policies = [self.policy, *(self.overrides or {}).values()]
        for policy in policies:
            if isinstance(policy, type) or not callable(getattr(policy, "allocate", None)):
                raise RankfoldError(f"policy {policy!r}; use for example rankfold.VBMF()")

    def plan_of(self, decided: Sequence[LayerPlan]) -> Plan:
        return Plan(
            layers=tuple(decided),
            policy=repr(self.policy),
            size=self.size,
            seed=self.seed,
            placement=self.placement,
        )

    def decisions(self) -> Iterator[_Decision]:
        """One decision per layer, in the model's order."""
        methods = registry().methods(_listed(self.methods or METHODS))
        kinds = self.adapter.layers(self.model)
        paths = {path: (path, *self.adapter.aliases(self.model, path)) for path in kinds}
        self._check_patterns(list(paths.values()))
        trace = None if self.inputs is None else self.adapter.trace(self.model, self.inputs)
        with progress("planning", len(kinds)) as advance:
            done: dict[str, _Decision] = {}
            groups: dict[int, tuple[Policy, list[Layer]]] = {}
            for path, kind in kinds.items():
                layer, reason = self._layer(paths[path], methods, trace)
                if layer is not None and not reason:
                    policy = self._policy(paths[path])
                    groups.setdefault(id(policy), (policy, []))[1].append(layer)
                    continue
                left = LayerPlan(path=path, op=kind, reason=reason)
                decision = _Decision(left)
                if layer is not None:
                    decision = _decide(layer, Choice(None, reason=reason))
                    layer.release()
                done[path] = decision
                registry().layer_done(done[path].layer)
            # layer by layer in the model's order where one policy rules, else policy by policy
            pending = iter(kinds)
            for policy, layers in groups.values():
                for decision in _allocated(policy, layers, advance):
                    done[decision.layer.path] = decision
                    if len(groups) == 1:
                        yield from _ready(pending, done, up_to=decision.layer.path)
            yield from _ready(pending, done, up_to=None)

    def _check_patterns(self, paths: Sequence[Sequence[str]]) -> None:
        if self.include is not None:
            check_patterns("include", _listed(self.include), paths)
        check_patterns("exclude", _listed(self.exclude), paths)
        check_patterns("overrides", self.overrides or (), paths)

    def _policy(self, paths: tuple[str, ...]) -> Policy:
        for pattern, policy in (self.overrides or {}).items():
            if matches(pattern, paths):
                return policy
        return self.policy

    def _layer(
        self, paths: tuple[str, ...], methods: Mapping[str, Decomposition], trace: Trace | None
    ) -> tuple[Layer | None, str]:
        """A layer, or None where it cannot be read, and why it is left alone, if it is."""
        read = partial(_read, self.adapter, self.model, paths[0], trace)
        extents = _extents(trace, paths[0])
        try:
            layer = Layer(paths, read, methods, extents, self.placement, self.seed)
        except Refused as refused:
            return None, self._deselected(paths) or refused.reason
        try:
            magnitude(layer.op.weight)
        except Refused as refused:
            return layer, self._deselected(paths) or refused.reason
        layer.release()
        return layer, self._deselected(paths)

    def _deselected(self, paths: tuple[str, ...]) -> str:
        for pattern in _listed(self.exclude):
            if matches(pattern, paths):
                return f"excluded by {pattern!r}"
        include = None if self.include is None else _listed(self.include)
        if include is not None and not any(matches(pattern, paths) for pattern in include):
            return "not included"
        return ""


def _ready(
    pending: Iterator[str], done: dict[str, _Decision], up_to: str | None
) -> Iterator[_Decision]:
    for path in pending:
        yield done.pop(path)
        if path == up_to:
            return


def _allocated(policy: Policy, layers: Sequence[Layer], advance: Advance) -> Iterator[_Decision]:
    choices = policy.allocate(layers)
    for layer in layers:
        advance(layer.path)
        try:
            choice = next(choices)
        except StopIteration:
            raise RankfoldError(
                f"policy {policy!r} made no choice for layer {layer.path!r}"
            ) from None
        decision = _decide(layer, choice)
        registry().layer_done(decision.layer)
        layer.release()
        yield decision


def _decide(layer: Layer, choice: Choice) -> _Decision:
    op = layer.op
    before = layer.cost(op)
    after, error, chain, method, reason = before, None, None, choice.method, choice.reason
    if method is not None and method not in layer.methods:
        reason = layer.refusals.get(method, f"method {method!r} is not allowed here")
        method = None
    if method is not None:
        try:
            candidate = layer.candidate(method, choice.ranks)
        except Refused as refused:
            method, reason = None, refused.reason
        else:
            after, error, chain = candidate.cost, candidate.error, candidate.chain
    decided = LayerPlan(
        path=layer.path,
        method=method,
        ranks=choice.ranks if method is not None else (),
        reason=reason,
        error=error,
        params=(before.params, after.params),
        macs=(before.macs, after.macs) if layer.traced else None,
        op=describe(op),
    )
    return _Decision(decided, op if chain is not None else None, chain)


def _built(
    adapter: Adapter, model: Any, seed: int, decision: _Decision, modules: dict[str, Any]
) -> LayerPlan:
    """Builds and checks the module of a decision; the layer stays where that fails."""
    done, op, chain = decision.layer, decision.op, decision.chain
    if op is None or chain is None:
        return done
    try:
        module = adapter.build(model, done.path, chain)
        epsilon = max(adapter.precision(model, done.path), float(np.finfo(op.weight.dtype).eps))
        run: Callable[[Any], Any] = partial(adapter.run, module)
        rng = np.random.default_rng(seed)
        assert done.error is not None
        check_chain(op, chain, done.error, run, epsilon, rng)
    except Refused as refused:
        return _undone(done, refused.reason)
    except Exception as error:  # an adapter's or a layer rule's fault must not stop the rest
        return _undone(done, f"building the replacement failed: {error!r}")
    modules[done.path] = module
    return done


def _undone(done: LayerPlan, reason: str) -> LayerPlan:
    return msgspec.structs.replace(
        done,
        method=None,
        ranks=(),
        reason=reason,
        error=None,
        params=None if done.params is None else (done.params[0], done.params[0]),
        macs=None if done.macs is None else (done.macs[0], done.macs[0]),
    )


def _read(adapter: Adapter, model: Any, path: str, trace: Trace | None) -> Op:
    op = adapter.read(model, path)
    if trace is not None and path in trace.refusals:
        raise Refused(trace.refusals[path])
    return op


def _extents(trace: Trace | None, path: str) -> tuple[Extent, ...] | None:
    return None if trace is None else trace.extents.get(path, ())


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
