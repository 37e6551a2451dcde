"""`rankfold inspect`: what could be saved in a checkpoint or a model, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rankfold.checkpoints.planner import LayerTensors, layer_tensors
from rankfold.checkpoints.reader import Checkpoint
from rankfold.cli.options import DEFAULT_POLICY, Recipe
from rankfold.cli.recipes import policy_of
from rankfold.cli.results import print_json, print_table
from rankfold.console import printable
from rankfold.decompose.base import Decomposition
from rankfold.decompose.evbmf import from_squares
from rankfold.errors import Infeasible, RankfoldError, Refused
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings
from rankfold.ops import Conv, Linear, Op
from rankfold.pipeline.session import INTERPOLATIVE, METHODS
from rankfold.plan.table import Contents
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy
from rankfold.policies.energy import energy_rank
from rankfold.progress import progress
from rankfold.storage.model_files import file_kind, known_kind, read_model

_SHARE = 0.9
"""Of the energy, whose rank has a column of its own."""
_KERNELS = (3, 4, 5)
"""Axes of the weight of a convolution over one to three spatial axes."""
_WORD = 8
"""The most letters of a reason in a cell; a longer one is a number, and stands below the table."""
_REASONS = 6
"""The most of them that stand there."""


@dataclass(frozen=True)
class _Row:
    """Facts about one tensor.

    Attributes:
        tensor: its name.
        shape: of it; empty where it cannot be read.
        reason: why it cannot be decomposed; "" where it can.
        evbmf: ranks of its unfoldings by EVBMF.
        energy: ranks that keep a share of their energy.
        methods: by name, what each method does.
    """

    tensor: str
    shape: tuple[int, ...] = ()
    reason: str = ""
    evbmf: tuple[int, ...] = ()
    energy: tuple[int, ...] = ()
    methods: Mapping[str, _Saving] = field(default_factory=dict)


@dataclass(frozen=True)
class _Saving:
    """Ranks and cost of a tensor under a method.

    Attributes:
        ranks: that it gets.
        share: of the parameters that is left; None where it is not decomposed.
        reason: why not.
    """

    ranks: tuple[int, ...] = ()
    share: float | None = None
    reason: str = ""

    @property
    def word(self) -> str:
        """The reason in a word, "rank 0" or "grew" for instance; "" where it has none."""
        word = self.reason.split(":")[0]
        return word if len(word) <= _WORD and word not in registry().decompositions else ""


def run(recipe: Recipe, *, as_json: bool = False) -> None:
    """Print a table of all matrices and kernels of a checkpoint, or of the layers of a model.

    Args:
        recipe: of which the target, the policy and the key count.
        as_json: print the rows as JSON.

    Raises:
        RankfoldError: the checkpoint or the policy cannot be read.
    """
    if recipe.target is None:
        raise RankfoldError("Missing argument TARGET: name a checkpoint, or set it in a recipe")
    checkpoint, chosen = Path(recipe.target), policy_of(recipe.policy)
    # The default methods first, then those of plugins. Interpolative ones have the ranks of the
    # methods that they are made from.
    told = (*METHODS, *INTERPOLATIVE)
    names = [*METHODS, *(n for n in registry().decompositions if n not in told)]
    methods = registry().methods(names)
    notes: tuple[str, ...] = ()
    if known_kind(checkpoint):
        ops = _layers(checkpoint)
    else:
        stored = Checkpoint(checkpoint, key=recipe.key)
        ops, notes = _tensors(stored), stored.notes
    rows: list[_Row] = []
    with progress("inspecting", len(ops)) as advance:
        for name, read in ops.items():
            advance(name)
            try:
                op = read()
            except Refused as refused:
                rows.append(_Row(name, reason=refused.reason))
                continue
            if op is not None:
                rows.append(_row(name, op, methods, chosen))
    if as_json:
        print_json(rows)
        return
    title = f"{checkpoint.name}: parameters left by {recipe.policy or DEFAULT_POLICY}"
    totals = (
        f"{len(rows)} tensors; {len(ops) - len(rows)} others are neither matrices nor kernels. "
        "Ranks of a kernel are (output, input); percentages are the share of the parameters that "
        "is left; rank 0: no structure above the noise."
    )
    rows, reasons = _numbered(rows)
    print_table(_table(title, rows, names, "\n".join((*reasons, totals, *notes))))


def _numbered(rows: Sequence[_Row]) -> tuple[list[_Row], list[str]]:
    """Return rows with a number in place of each reason of a method that is no mere word."""
    reasons = {
        saving.reason: None
        for row in rows
        for saving in row.methods.values()
        if saving.reason and not saving.word
    }
    marks = dict.fromkeys(reasons, "(…)")
    told = list(reasons)[:_REASONS]
    marks |= {reason: f"({number})" for number, reason in enumerate(told, 1)}
    lines = [f"{marks[reason]}: {printable(reason)}" for reason in told]
    if len(reasons) > len(told):
        lines.append(f"(…): {len(reasons) - len(told)} other reasons, which --json has")

    def short(saving: _Saving) -> _Saving:
        return replace(saving, reason=saving.word or marks.get(saving.reason, ""))

    shown = [replace(row, methods={n: short(s) for n, s in row.methods.items()}) for row in rows]
    return shown, lines


def _table(title: str, rows: list[_Row], methods: list[str], totals: str) -> Contents:
    """Tabulate the rows; in brief without ranks of methods, and at last without the slow ones."""
    energy = f"energy {_SHARE:.0%}"

    def cells(saving: Callable[[_Saving], str], end: str = "") -> tuple[tuple[str, ...], ...]:
        return tuple(
            (
                row.tensor.removesuffix(end),
                row.reason.split(":")[0] or "×".join(map(str, row.shape)),
                ", ".join(map(str, row.evbmf)),
                ", ".join(map(str, row.energy)),
                *(saving(row.methods[name]) if name in row.methods else "" for name in methods),
            )
            for row in rows
        )

    short = {name: name.replace("_", "_\n", 1) for name in methods}
    columns = {"tensor": False, "shape": False, "EVBMF": True}
    others = tuple(short[name] for name in reversed(methods) if name not in METHODS)
    brief = Contents(
        title,
        columns | dict.fromkeys((energy.replace(" ", "\n"), *short.values()), True),
        cells(_share, ".weight"),
        totals,
        optional=(*others, "shape"),
    )
    full = columns | dict.fromkeys((energy, *methods), True)
    return Contents(title, full, cells(_ranks_and_share), totals, brief)


def _ranks_and_share(saving: _Saving) -> str:
    return saving.reason or f"{', '.join(map(str, saving.ranks))} ({saving.share:.0%})"


def _share(saving: _Saving) -> str:
    return saving.reason or f"{saving.share:.0%}"


def _layers(file: Path) -> dict[str, Callable[[], Op | None]]:
    """Return the layers of a file with a whole model, each to be read."""
    model = read_model(file, file_kind(file))
    adapter = registry().adapter(model)
    return {path: partial(adapter.read, model, path) for path in adapter.layers(model)}


def _tensors(stored: Checkpoint) -> dict[str, Callable[[], Op | None]]:
    """Return the tensors of a checkpoint, each to be read."""
    kernels = {layer.weight: layer for layer in layer_tensors(stored).values() if not layer.refusal}
    return {name: partial(_op, stored, name, kernels.get(name)) for name in stored.owner}


def _op(stored: Checkpoint, name: str, layer: LayerTensors | None) -> Op | None:
    """Return a matrix as a `Linear`, a kernel as a `Conv`; None for any other tensor."""
    axes = len(stored.entry(name).shape)
    if not stored.is_float(name) or axes not in (2, *_KERNELS):
        return None
    # By axes alone: it is a table of what could be, layers or not. Of a kernel a rule tells which
    # axes are the channels.
    if axes == 2:
        return Linear(stored.array(name))
    return Conv(stored.array(name)) if layer is None else replace(layer, bias=None).read(stored)


def _row(name: str, op: Op, methods: Mapping[str, Decomposition], policy: Policy) -> _Row:
    shape = op.weight.shape
    try:
        layer = Layer((name,), lambda: op, Settings(methods, "balanced", 0))
        # The unfoldings are the same for every policy: of a kernel by output and by input channels,
        # of a matrix the only one.
        anchor = methods["tucker2" if op.weight.ndim > 2 else "svd"]
        unfoldings = anchor.modes(op, layer.spectrum)
    except Refused as refused:
        return _Row(name, shape, refused.reason)
    # Of a grouped layer the group with the largest rank, since all groups have one rank.
    evbmf = (max(from_squares(group, m.sides).rank for group in m.values) for m in unfoldings)
    energy = (energy_rank(m.values.sum(axis=0), _SHARE) for m in unfoldings)
    savings = {method: _saving(layer.with_method(method), policy) for method in methods}
    return _Row(name, shape, "", tuple(evbmf), tuple(energy), savings)


def _saving(layer: Layer, policy: Policy) -> _Saving:
    """Return the ranks one method gets and the share of parameters left, or why not."""
    if not layer.methods:
        return _Saving(reason="–")
    try:
        choice = next(policy.allocate(LayerGroup.of([layer])))
    except Infeasible:
        return _Saving(reason="too much")
    except RankfoldError as error:  # of the policy, and so the same for every tensor
        raise RankfoldError(
            f"{error}; inspect judges tensors by their parameters alone: use another policy, or "
            "rankfold compress with --dry-run"
        ) from error
    if choice.method is None:
        return _Saving(reason=choice.reason)
    cost = layer.template_cost(choice.method, choice.ranks)
    return _Saving(choice.ranks, cost.params / layer.op.weight.size)
