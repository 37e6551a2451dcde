"""What a jaxpr does with the leaves of its parameters: who multiplies with them, at which sizes.

A function is traced to a jaxpr without computing anything. Its parameter leaves are labelled, and
the labels are followed through everything that only moves numbers about (reshapes, transpositions,
casts, slices of a stack) into nested jit, scan, while, cond, remat, custom_jvp and custom_vjp.
Every dot_general, conv_general_dilated and look-up with a labelled operand is a `Use`; whatever
else meets a labelled value is a `Read`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from rankfold.errors import RankfoldError

Leaf: TypeAlias = Hashable
Shape: TypeAlias = tuple[int, ...]

MOVING = frozenset(
    {
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "mesh_cast",
        "name",
        "pvary",
        "reduce_precision",
        "reshape",
        "reshard",
        "rev",
        "sharding_constraint",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)
SLICING = frozenset({"dynamic_slice", "slice"})
PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})


@dataclass(frozen=True)
class Label:
    """A value that is a parameter leaf, or one slice of it.

    Attributes:
        leaf: which.
        slices: how many values like this one the leaf holds.
        axes: for each axis of the value, the axis of the leaf that it is; None where that is not
            known. None for all of them at the start, when they are the leaf's own.
        taken: the axes of the leaf along which the slice was taken.
    """

    leaf: Leaf
    slices: int = 1
    axes: tuple[int | None, ...] | None = None
    taken: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Use:
    """A product or a look-up with a parameter leaf.

    Attributes:
        leaf: which.
        primitive: "dot_general", "conv_general_dilated" or "gather".
        weight: the shape of the leaf's operand.
        input: the shape of the other operand; of the indices for a look-up.
        output: the shape of the result.
        extent: the extent of the input as `rankfold.ops` defines it, without stacked axes. Repeats
            in a loop are folded into its first axis.
        macs: multiply-accumulates, all repeats and slices together; a loop of unknown length
            counts once.
        stacked: axes of the leaf along which it is a stack of kernels, as far as they are known.
        summed: axes of the leaf that are summed over, so that it is no stack along them.
    """

    leaf: Leaf
    primitive: str
    weight: Shape
    input: Shape
    output: Shape
    extent: Shape
    macs: int
    stacked: frozenset[int] = frozenset()
    summed: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Read:
    """Anything else that is done with a parameter leaf: the primitive it goes into."""

    leaf: Leaf
    primitive: str


@dataclass
class Found:
    """What was found in a jaxpr, in its order."""

    uses: list[Use] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def of(self, leaf: Leaf) -> list[Use]:
        """The uses of one leaf."""
        return [use for use in self.uses if use.leaf == leaf]


def traced(function: Callable[..., Any], params: Any, *inputs: Any) -> tuple[ClosedJaxpr, Any]:
    """The jaxpr of a function of (params, *inputs), and the tree of its output.

    Args:
        function: traced, not run.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`; its leaves come first among the
            jaxpr's inputs, in the order of `jax.tree.leaves`.
        inputs: pytrees of the same.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, *inputs)
    return closed, jax.tree.structure(shapes)


def find(closed: ClosedJaxpr, leaves: Sequence[Leaf | None]) -> Found:
    """Follows labelled inputs through a jaxpr.

    Args:
        closed: as `traced` gives it.
        leaves: a label for each of the jaxpr's first inputs; None for one that is not followed.

    Raises:
        RankfoldError: this version of JAX writes its jaxprs in another way.
    """
    found = Found()
    labels = [
        None if leaf is None else Label(leaf, axes=tuple(range(len(shape_of(var)))))
        for leaf, var in zip(leaves, closed.jaxpr.invars, strict=False)
    ]
    labels += [None] * (len(closed.jaxpr.invars) - len(labels))
    _walk(closed.jaxpr, labels, 1, found)
    return found


def _walk(
    jaxpr: Jaxpr, labels: Sequence[Label | None], repeats: int, found: Found
) -> list[Label | None]:
    """Goes through the equations; gives the labels of the outputs."""
    known: dict[Var, Label] = {
        var: label for var, label in zip(jaxpr.invars, labels, strict=True) if label is not None
    }
    for eqn in jaxpr.eqns:
        inside = [None if isinstance(v, Literal) else known.get(v) for v in eqn.invars]
        if all(label is None for label in inside):
            continue
        for var, label in zip(eqn.outvars, step(eqn, inside, repeats, found), strict=True):
            if label is not None:
                known[var] = label
    return [None if isinstance(v, Literal) else known.get(v) for v in jaxpr.outvars]


def step(
    eqn: JaxprEqn, labels: list[Label | None], repeats: int, found: Found
) -> list[Label | None]:
    """One equation: records what it does with labelled operands, gives its outputs' labels."""
    name = eqn.primitive.name
    nothing: list[Label | None] = [None] * len(eqn.outvars)
    if name == "scan":
        return _scan(eqn, labels, repeats, found)
    if name == "while":
        return _while(eqn, labels, repeats, found)
    if name == "cond":
        return _cond(eqn, labels, repeats, found)
    inner = called(eqn)
    if inner is not None:
        return _walk(inner.jaxpr, labels, repeats, found)
    label = moved(eqn, labels)
    if label is not None:
        return [label] * len(eqn.outvars)
    if name == "optimization_barrier":
        return list(labels)
    use = product(eqn, labels, repeats) or look_up(eqn, labels, repeats)
    if use is not None:
        found.uses.append(use)
        return nothing
    found.reads += [Read(label.leaf, name) for label in labels if label is not None]
    return nothing


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of an equation that does nothing but call it: jit, remat, custom_jvp and so on."""
    if eqn.primitive.name in ("scan", "while", "cond", "shard_map"):
        return None
    names = [n for n in ("jaxpr", "call_jaxpr", "fun_jaxpr") if n in eqn.params]
    if len(names) != 1:
        return None
    inner = eqn.params[names[0]]
    if isinstance(inner, Jaxpr):
        inner = ClosedJaxpr(inner, ())
    if not isinstance(inner, ClosedJaxpr) or len(inner.jaxpr.invars) != len(eqn.invars):
        return None
    return inner if len(inner.jaxpr.outvars) == len(eqn.outvars) else None


def moved(eqn: JaxprEqn, labels: Sequence[Label | None]) -> Label | None:
    """The label of a result that holds the same numbers as its first operand, or a slice of it."""
    label = labels[0]
    if label is None or any(other is not None for other in labels[1:]):
        return None
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    if eqn.primitive.name in MOVING:
        if math.prod(before) != math.prod(after):
            return None
        return replace(label, axes=_axes(eqn, label, before, after))
    one_of_a_stack = (
        eqn.primitive.name == "gather"
        and len(before) > 2
        and math.prod(shape_of(eqn.invars[1])[:-1]) == 1
    )
    if eqn.primitive.name in SLICING or one_of_a_stack:
        if not math.prod(after) or math.prod(before) % math.prod(after):
            return None
        axes, taken = label.axes, label.taken
        if axes is not None and len(before) == len(after):
            cut = [axis for axis, b, a in zip(axes, before, after, strict=True) if b != a]
            taken = (*taken, *cut)
        else:
            axes, taken = None, (*taken, None)
        ratio = math.prod(before) // math.prod(after)
        return replace(label, slices=label.slices * ratio, axes=axes, taken=taken)
    return None


def _axes(
    eqn: JaxprEqn, label: Label, before: Shape, after: Shape
) -> tuple[int | None, ...] | None:
    """Which axis of the leaf each axis of a moved value is."""
    axes, name = label.axes, eqn.primitive.name
    if axes is None or before == after:
        return axes if name not in ("transpose", "rev") or axes is None else _permuted(eqn, axes)
    if name == "transpose":
        return _permuted(eqn, axes)
    long = [axis for axis, size in zip(axes, before, strict=True) if size != 1]
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    kept = iter(long)
    return tuple(next(kept) if size != 1 else None for size in after)


def _permuted(eqn: JaxprEqn, axes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    if eqn.primitive.name == "rev":
        return axes
    return tuple(axes[axis] for axis in param(eqn, "permutation"))


def product(eqn: JaxprEqn, labels: Sequence[Label | None], repeats: int) -> Use | None:
    """A product of a labelled operand with one that is not."""
    name = eqn.primitive.name
    if name not in PRODUCTS or sum(label is not None for label in labels) != 1:
        return None
    side = 0 if labels[0] is not None else 1
    label = labels[side]
    assert label is not None
    weight, other = shape_of(eqn.invars[side]), shape_of(eqn.invars[1 - side])
    output = shape_of(eqn.outvars[0])
    times = -(-repeats // label.slices)
    if name == "dot_general":
        (contract, batch) = param(eqn, "dimension_numbers")
        taken = {*contract[1 - side], *batch[1 - side]}
        free = tuple(size for axis, size in enumerate(other) if axis not in taken)
        extent = (times, *free) if times > 1 else free
        macs = math.prod(output) * math.prod(weight[axis] for axis in contract[side])
        known = label.axes or (None,) * len(weight)
        stacked = _known(*label.taken, *(known[axis] for axis in batch[side]))
        summed = _known(*(known[axis] for axis in contract[side]))
        return Use(label.leaf, name, weight, other, output, extent, macs * repeats, stacked, summed)
    if side == 0 or param(eqn, "batch_group_count") != 1:
        return None
    spec = param(eqn, "dimension_numbers")
    batch_axis, _, *spatial = spec.lhs_spec
    extent = (other[batch_axis] * times, *(other[axis] for axis in spatial))
    transposed = any(step > 1 for step in param(eqn, "lhs_dilation"))
    positions = math.prod(extent) // times if transposed else math.prod(output)
    rows = weight[spec.rhs_spec[0]]
    macs = math.prod(weight) * (positions if transposed else positions // rows)
    stacked = _known(*label.taken)
    return Use(label.leaf, name, weight, other, output, extent, macs * repeats, stacked)


def _known(*axes: int | None) -> frozenset[int]:
    return frozenset(axis for axis in axes if axis is not None)


def look_up(eqn: JaxprEqn, labels: Sequence[Label | None], repeats: int) -> Use | None:
    """A gather of rows of a labelled table."""
    if eqn.primitive.name != "gather" or labels[0] is None or labels[1] is not None:
        return None
    indices = shape_of(eqn.invars[1])[:-1]
    extent = (repeats, *indices) if repeats > 1 else indices
    table, output = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    return Use(labels[0].leaf, "gather", table, indices, output, extent, 0)


def param(eqn: JaxprEqn, name: str) -> Any:
    """A parameter of an equation.

    Raises:
        RankfoldError: this version of JAX does not have it.
    """
    if name not in eqn.params:
        raise RankfoldError(
            f"jax {jax.__version__} writes {eqn.primitive.name!r} without {name!r}: this version "
            "of rankfold cannot read its jaxprs; use a version of jax between 0.7 and 0.10, or a "
            "newer rankfold"
        )
    return eqn.params[name]


def _scan(
    eqn: JaxprEqn, labels: list[Label | None], repeats: int, found: Found
) -> list[Label | None]:
    consts, carried = param(eqn, "num_consts"), param(eqn, "num_carry")
    length, body = param(eqn, "length"), param(eqn, "jaxpr").jaxpr
    sliced = sliced_by_scan(labels[consts + carried :], length)

    def walk(carry: Sequence[Label | None], into: Found) -> list[Label | None]:
        inside = [*labels[:consts], *carry, *sliced]
        return _walk(body, inside, repeats * length, into)[:carried]

    carry, inner = settled(labels[consts : consts + carried], walk)
    merge(found, inner)
    _lost(labels[consts : consts + carried], carry, "scan", found)
    return [*carry, *(None for _ in eqn.outvars[carried:])]


def sliced_by_scan(labels: Sequence[Label | None], length: int) -> list[Label | None]:
    """The labels of what a scan hands to its body, slice by slice of the first axis."""
    inside: list[Label | None] = []
    for label in labels:
        if label is None:
            inside.append(None)
            continue
        first, rest = (None, None) if label.axes is None else (label.axes[0], label.axes[1:])
        slices = label.slices * length
        inside.append(replace(label, slices=slices, axes=rest, taken=(*label.taken, first)))
    return inside


def _while(
    eqn: JaxprEqn, labels: list[Label | None], repeats: int, found: Found
) -> list[Label | None]:
    tests, consts = param(eqn, "cond_nconsts"), param(eqn, "body_nconsts")
    test, body = param(eqn, "cond_jaxpr").jaxpr, param(eqn, "body_jaxpr").jaxpr
    held = labels[tests : tests + consts]

    def walk(carry: Sequence[Label | None], into: Found) -> list[Label | None]:
        _walk(test, [*labels[:tests], *carry], repeats, into)
        return _walk(body, [*held, *carry], repeats, into)

    carry, inner = settled(labels[tests + consts :], walk)
    merge(found, inner)
    _lost(labels[tests + consts :], carry, "while", found)
    return carry


def _cond(
    eqn: JaxprEqn, labels: list[Label | None], repeats: int, found: Found
) -> list[Label | None]:
    """Of several branches each leaf counts where it costs most."""
    branches: list[Found] = []
    outs: list[list[Label | None]] = []
    for branch in param(eqn, "branches"):
        inner = Found()
        outs.append(_walk(branch.jaxpr, labels[1:], repeats, inner))
        branches.append(inner)
    for leaf in dict.fromkeys(use.leaf for inner in branches for use in inner.uses):
        found.uses += max(
            (inner.of(leaf) for inner in branches), key=lambda uses: sum(u.macs for u in uses)
        )
    for inner in branches:
        found.reads += inner.reads
    agreed = [column[0] if len(set(column)) == 1 else None for column in zip(*outs, strict=True)]
    for column, label in zip(zip(*outs, strict=True), agreed, strict=True):
        _lost(column, [label] * len(column), "cond", found)
    return agreed


def settled(
    carry: Sequence[Label | None],
    walk: Callable[[Sequence[Label | None], Found], Sequence[Label | None]],
) -> tuple[list[Label | None], Found]:
    """The labels that a loop carries unchanged, and what its body does with them."""
    held = list(carry)
    while True:
        inner = Found()
        after = walk(held, inner)
        kept = [
            before if before == later else None for before, later in zip(held, after, strict=True)
        ]
        if kept == held:
            return kept, inner
        held = kept


def merge(found: Found, inner: Found) -> None:
    """Adds what was found inside."""
    found.uses += inner.uses
    found.reads += inner.reads


def _lost(
    before: Sequence[Label | None], after: Sequence[Label | None], where: str, found: Found
) -> None:
    found.reads += [
        Read(b.leaf, where) for b, a in zip(before, after, strict=True) if b is not None and a != b
    ]


def shape_of(value: Any) -> Shape:
    """The shape of a variable or a literal of a jaxpr."""
    return tuple(getattr(value.aval, "shape", ()))


def leaves_of(tree: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a tree of dicts and the like, each with its keys joined by dots."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield ".".join(_key(entry) for entry in path), leaf


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def by_leaf(found: Found) -> Mapping[Leaf, tuple[list[Use], list[Read]]]:
    """Uses and reads of each leaf."""
    table: dict[Leaf, tuple[list[Use], list[Read]]] = {}
    for use in found.uses:
        table.setdefault(use.leaf, ([], []))[0].append(use)
    for read in found.reads:
        table.setdefault(read.leaf, ([], []))[1].append(read)
    return table
