"""`rankfold inspect`: what could be saved in a checkpoint or a model, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rich.table import Table

from rankfold.checkpoints.reader import Checkpoint
from rankfold.console import literal, wide_console
from rankfold.decompose.base import Decomposition
from rankfold.decompose.evbmf import from_squares
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings
from rankfold.ops import Conv, Linear, Op
from rankfold.pipeline.session import INTERPOLATIVE, METHODS
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy
from rankfold.policies.energy import energy_rank
from rankfold.progress import progress
from rankfold.storage.model_files import file_kind, known_kind, read_model

_SHARE = 0.9
_KERNELS = (3, 4, 5)


def run(checkpoint: Path, policy: str) -> None:
    """Print a table of all matrices and kernels of a checkpoint, or of the layers of a model.

    Raises:
        RankfoldError: the checkpoint or the policy cannot be read.
    """
    chosen = registry().policy(policy)
    # The default methods first, then those of plugins. Interpolative ones have the ranks of the
    # methods that they are made from.
    told = (*METHODS, *INTERPOLATIVE)
    names = [*METHODS, *(n for n in registry().decompositions if n not in told)]
    methods = registry().methods(names)
    title = literal(f"{checkpoint.name}: parameters left by {policy}", "table.title")
    table = Table(title=title, title_justify="left")
    for column in ("tensor", "shape"):
        table.add_column(column, overflow="fold")
    for column in ("EVBMF", f"energy {_SHARE:.0%}", *methods):
        table.add_column(column, justify="right")
    skipped = 0
    ops = _layers(checkpoint) if known_kind(checkpoint) else _tensors(Checkpoint(checkpoint))
    with progress("inspecting", len(ops)) as advance:
        for name, read in ops.items():
            advance(name)
            try:
                op = read()
            except Refused as refused:
                table.add_row(*map(literal, (name, "–", refused.reason)))
                continue
            if op is None:
                skipped += 1
                continue
            shape = "×".join(map(str, op.weight.shape))
            cells = (name, shape, *_cells(name, op, methods, chosen))
            table.add_row(*map(literal, cells))
    console = wide_console()
    console.print(table)
    console.print(
        f"{len(ops) - skipped} tensors; {skipped} others are neither matrices nor kernels. "
        "Ranks of a kernel are (output, input).",
        highlight=False,
    )


def _layers(file: Path) -> dict[str, Callable[[], Op | None]]:
    """Return the layers of a file with a whole model, each to be read."""
    model = read_model(file, file_kind(file))
    adapter = registry().adapter(model)
    return {path: partial(adapter.read, model, path) for path in adapter.layers(model)}


def _tensors(stored: Checkpoint) -> dict[str, Callable[[], Op | None]]:
    """Return the tensors of a checkpoint, each to be read."""
    return {name: partial(_op, stored, name) for name in sorted(stored.owner)}


def _op(stored: Checkpoint, name: str) -> Op | None:
    """Return a matrix as a `Linear`, a kernel as a `Conv`; None for any other tensor."""
    axes = len(stored.entry(name).shape)
    if not stored.is_float(name) or axes not in (2, *_KERNELS):
        return None
    # By axes alone, without tensor rules: it is a table of what could be, layers or not.
    return Linear(stored.array(name)) if axes == 2 else Conv(stored.array(name))


def _cells(name: str, op: Op, methods: Mapping[str, Decomposition], policy: Policy) -> list[str]:
    try:
        layer = Layer((name,), lambda: op, Settings(methods, "balanced", 0))
        # The unfoldings are the same for every policy: of a kernel by output and by input channels,
        # of a matrix the only one.
        anchor = methods["tucker2" if op.weight.ndim > 2 else "svd"]
        unfoldings = anchor.modes(op, layer.spectrum)
    except Refused as refused:
        return [refused.reason]
    # Of a grouped layer the group with the largest rank, since all groups have one rank.
    evbmf = [max(from_squares(group, m.sides).rank for group in m.values) for m in unfoldings]
    energy = [energy_rank(m.values.sum(axis=0), _SHARE) for m in unfoldings]
    savings = [_saving(layer.with_method(method), policy) for method in methods]
    return [", ".join(map(str, evbmf)), ", ".join(map(str, energy)), *savings]


def _saving(layer: Layer, policy: Policy) -> str:
    """Return the ranks one method gets and the share of parameters left; why not, in a word."""
    if not layer.methods:
        return "–"
    try:
        choice = next(policy.allocate(LayerGroup.of([layer])))
    except RankfoldError as error:
        return str(error).split(":")[0]
    if choice.method is None:
        return choice.reason.split(":")[0]
    cost = layer.template_cost(choice.method, choice.ranks)
    ranks = ", ".join(map(str, choice.ranks))
    return f"{ranks} ({cost.params / layer.op.weight.size:.0%})"
