"""Uses of the leaves of parameters in a jaxpr: who multiplies with them, at which sizes.

A function is traced to a jaxpr without computing anything. Its parameter leaves are labelled, and
the labels are followed through everything that only moves numbers about (reshapes, transpositions,
casts, slices of a stack) into nested jit, scan, while, cond, remat, custom_jvp and custom_vjp.
Every dot_general, conv_general_dilated and look-up with a labelled operand is a `ParameterUse`;
whatever else meets a labelled value is a `Read`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from rankfold_jax.jaxpr import control_flow as flow
from rankfold_jax.jaxpr.parameter_uses import ParameterUse, look_up, product
from rankfold_jax.jaxpr.provenance import Label, Leaf, Provenance, moved, shape_of, sliced_by_scan


@dataclass(frozen=True)
class Read:
    """Anything else that is done with a parameter leaf: the primitive it goes into."""

    leaf: Leaf
    primitive: str


@dataclass
class Dataflow:
    """Uses and reads of leaves in a jaxpr, in its order."""

    uses: list[ParameterUse] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def of(self, leaf: Leaf) -> list[ParameterUse]:
        """Return the uses of one leaf."""
        return [use for use in self.uses if use.leaf == leaf]


def traced(function: Callable[..., Any], params: Any, *inputs: Any) -> tuple[ClosedJaxpr, Any]:
    """Return the jaxpr of a function of (params, *inputs), and the tree of its output.

    Args:
        function: traced, not run.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`; its leaves come first among the
            jaxpr's inputs, in the order of `jax.tree.leaves`.
        inputs: pytrees of the same.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, *inputs)
    return closed, jax.tree.structure(shapes)


def find(closed: ClosedJaxpr, leaves: Sequence[Leaf | None]) -> Dataflow:
    """Follow labelled inputs through a jaxpr.

    Args:
        closed: as `traced` gives it.
        leaves: a label for each of the jaxpr's first inputs; None for one that is not followed.

    Raises:
        RankfoldError: this version of JAX writes its jaxprs in another way.
    """
    dataflow = Dataflow()
    labels = [
        None if leaf is None else Provenance(leaf, axes=tuple(range(len(shape_of(var)))))
        for leaf, var in zip(leaves, closed.jaxpr.invars, strict=False)
    ]
    labels += [None] * (len(closed.jaxpr.invars) - len(labels))
    _walk(closed, labels, 1, dataflow)
    return dataflow


def _walk(
    closed: ClosedJaxpr, labels: Sequence[Label], repeats: int, dataflow: Dataflow
) -> list[Label]:
    def apply(eqn: JaxprEqn, inside: list[Label]) -> list[Label]:
        return step(eqn, inside, repeats, dataflow)

    return flow.evaluated(closed, labels, apply, lambda _: None)


def step(eqn: JaxprEqn, labels: Sequence[Label], repeats: int, dataflow: Dataflow) -> list[Label]:
    """Record what an equation does with labelled operands, and return the labels of its outputs."""
    nothing: list[Label] = [None] * len(eqn.outvars)
    if all(label is None for label in labels):
        return nothing
    match flow.split(eqn):
        case flow.Scan() as scan:
            constants, start, stacked = scan.operands(labels)
            inside = [*constants, *start, *sliced_by_scan(stacked, scan.length)]
            return _loop(eqn, scan, inside, repeats, dataflow)
        case flow.While() as loop:
            return _loop(eqn, loop, labels, repeats, dataflow)
        case flow.Cond(branches):
            return _cond(branches, labels[1:], repeats, dataflow)
        case flow.Call(body):
            return _walk(body, labels, repeats, dataflow)
    # A shard_map ends here, too: within it shapes are those of shards, not of the leaf.
    label = moved(eqn, labels)
    if label is not None:
        return [label] * len(eqn.outvars)
    if eqn.primitive.name == "optimization_barrier":
        return list(labels)
    use = product(eqn, labels, repeats) or look_up(eqn, labels, repeats)
    if use is not None:
        dataflow.uses.append(use)
    else:
        _lost(labels, [None] * len(labels), eqn.primitive.name, dataflow)
    return nothing


def _loop(
    eqn: JaxprEqn,
    loop: flow.Scan | flow.While,
    labels: Sequence[Label],
    repeats: int,
    dataflow: Dataflow,
) -> list[Label]:
    """Keep the labels that a loop carries unchanged."""

    def run(body: ClosedJaxpr, inside: list[Label], inner: Dataflow) -> list[Label]:
        return _walk(body, inside, repeats * loop.length, inner)

    carry, _, inner = flow.settled(loop, labels, run, _agreed, Dataflow)
    dataflow.uses += inner.uses
    dataflow.reads += inner.reads
    _lost(loop.start(labels), carry, eqn.primitive.name, dataflow)
    # Stacked outputs are not followed: a scan over layers hands their kernels on so, unchanged.
    return [*carry, *(None for _ in eqn.outvars[len(carry) :])]


def _cond(
    branches: Sequence[ClosedJaxpr],
    labels: Sequence[Label],
    repeats: int,
    dataflow: Dataflow,
) -> list[Label]:
    """Count each leaf in the branch where it costs most, and keep labels that all branches give."""
    inner = [Dataflow() for _ in branches]
    outs = [
        _walk(branch, labels, repeats, into) for branch, into in zip(branches, inner, strict=True)
    ]
    # Each leaf by itself, as the costs of different layers are not compared here.
    for leaf in dict.fromkeys(use.leaf for into in inner for use in into.uses):
        dataflow.uses += max(
            (into.of(leaf) for into in inner), key=lambda uses: sum(u.macs for u in uses)
        )
    for into in inner:
        dataflow.reads += into.reads
    columns = list(zip(*outs, strict=True))
    agreed = [_agreed(column) for column in columns]
    for column, label in zip(columns, agreed, strict=True):
        _lost(column, [label] * len(column), "cond", dataflow)
    return agreed


def _agreed(labels: Sequence[Label]) -> Label:
    return labels[0] if len(set(labels)) == 1 else None


def _lost(
    before: Sequence[Label],
    after: Sequence[Label],
    where: str,
    dataflow: Dataflow,
) -> None:
    dataflow.reads += [
        Read(b.leaf, where) for b, a in zip(before, after, strict=True) if b is not None and a != b
    ]


def bind(eqn: JaxprEqn, arguments: Sequence[Any]) -> list[Any]:
    """Return the outputs of an equation for these operands."""
    primitive: Any = eqn.primitive
    bound = primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # jax before 0.10
    with eqn.ctx.manager:
        outputs = primitive.bind(*functions, *arguments, **params)
    return list(outputs) if primitive.multiple_results else [outputs]


def leaves_of(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree of dicts and the like, each with its keys joined by dots."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield ".".join(_key(entry) for entry in path), leaf


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
