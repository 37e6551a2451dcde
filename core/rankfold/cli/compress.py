"""`rankfold compress`: a checkpoint, a file with a model, or a factory's with its weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from rankfold.adapters.capabilities import capabilities
from rankfold.checkpoints.arguments import dropped_names
from rankfold.checkpoints.compress import compress_checkpoint
from rankfold.checkpoints.planning import request
from rankfold.checkpoints.workdir import keeps_work
from rankfold.cli.arguments import called
from rankfold.cli.example_inputs import example_inputs, model_inputs
from rankfold.cli.executors import opened
from rankfold.cli.options import Recipe
from rankfold.cli.plans import plan_at
from rankfold.cli.recipes import merged, overrides_of, policy_of
from rankfold.cli.results import quiet, show
from rankfold.cli.signals import Terminated
from rankfold.cli.weights import filled
from rankfold.errors import RankfoldError
from rankfold.pipeline.api import apply, compress
from rankfold.pipeline.api import plan as planned
from rankfold.pipeline.result import Compressed
from rankfold.plan.plan import Plan
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy
from rankfold.policies.selection import listed
from rankfold.storage.model_files import (
    check_writable,
    file_kind,
    known_kind,
    read_model,
    write_model,
)
from rankfold.storage.safetensors_header import check_plain, parse_json
from rankfold.storage.saved_plan import check_replaceable

_MOST_INPUTS = 16 * 2**20
"""Bytes of a file with shapes, which is read as a whole before anything in it is known."""
_DECIDED = (
    *("policy", "methods", "include", "exclude", "overrides"),
    *("calibration", "loss", "refit", "moments", "placement", "seed"),
)
"""What a plan has decided already."""


@dataclass(frozen=True)
class _Task:
    """A recipe with what it is carried out on.

    Attributes:
        recipe: the options.
        target: its target.
        decided: by a policy, or by a plan that was made before.
        choices: keywords of `rankfold.plan` that are not its defaults.
        dry: plan only, and write nothing.
    """

    recipe: Recipe
    target: str
    decided: Policy | Plan
    choices: dict[str, Any]
    dry: bool


def run(
    flags: Recipe, config: Path | None, plan: Path | None, *, dry_run: bool, as_json: bool
) -> None:
    """Compress, save and print the plan.

    Args:
        flags: the options of the command line.
        config: a file with a recipe for what they leave out; None for none.
        plan: a file with the plan to carry out; None where a policy decides.
        dry_run: plan only, and write nothing.
        as_json: print the plan as JSON, and nothing else.

    Raises:
        RankfoldError: any argument is wrong, and nothing is written then; or only the plan could
            not be printed, and the message says so.
    """
    with quiet(as_json):
        done, output = _carried_out(flags, config, plan, dry=dry_run)
    show(done, output, as_json=as_json)


def _carried_out(
    flags: Recipe, config: Path | None, plan: Path | None, *, dry: bool
) -> tuple[Plan, Path | None]:
    """Do what is to be done; return the plan, and where the result was written."""
    recipe = merged(flags, config)
    if plan is not None:
        _refuse(flags, _DECIDED, "has been decided by the plan; leave it out")
        recipe = msgspec.structs.replace(recipe, **dict.fromkeys(_DECIDED))
    if recipe.target is None:
        raise RankfoldError("Missing argument TARGET: name what to compress, or set it in a recipe")
    if recipe.output is None and not dry:
        raise RankfoldError(
            "--output is missing; name the folder to write with -o, or add --dry-run"
        )
    whole = recipe.weights is None and known_kind(Path(recipe.target)) is not None
    # Looked at before a model is made and decomposed, and not only when it is to be written.
    if recipe.output is not None and not (whole and known_kind(recipe.output)):
        check_replaceable(recipe.output)
    decided = policy_of(recipe.policy) if plan is None else plan_at(plan)
    task = _Task(recipe, recipe.target, decided, _choices(recipe), dry)
    compressed = _whole if whole else _checkpoint if recipe.weights is None else _model
    with _interruptible(recipe.output):
        return compressed(task), None if dry else recipe.output


def _choices(recipe: Recipe) -> dict[str, Any]:
    """Return the keywords of the verbs that a recipe gives."""
    methods = recipe.methods
    if methods is not None:
        names = methods.split(",") if isinstance(methods, str) else methods
        methods = [name.strip() for name in names]
    values = {
        "methods": methods,
        "include": recipe.include and listed(recipe.include),
        "exclude": recipe.exclude and listed(recipe.exclude),
        "overrides": overrides_of(recipe),
        "placement": recipe.placement,
        "seed": recipe.seed,
    }
    return {name: value for name, value in values.items() if value not in (None, [], ())}


@contextmanager
def _interruptible(output: Path | None) -> Iterator[None]:
    """Say after Ctrl-C what there is of the result."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        kept = output is not None and keeps_work(output)
        what = "what is finished is kept for the same command" if kept else "nothing was written"
        print(f"rankfold: interrupted; {what}", file=sys.stderr)
        raise


def _refuse(recipe: Recipe, names: tuple[str, ...], why: str) -> None:
    """Raise an error at the first of these options that is given."""
    for name in names:
        if getattr(recipe, name) not in (None, []):
            raise RankfoldError(f"--{'override' if name == 'overrides' else name} {why}")


def _checkpoint(task: _Task) -> Plan:
    recipe = task.recipe
    _refuse(
        recipe, ("calibration", "loss", "refit"), "is for models: name a factory, with --weights"
    )
    if not Path(task.target).exists():
        factory = ":" in task.target
        hint = "; a factory needs --weights" if factory else ""
        raise RankfoldError(f"checkpoint {task.target!r} is not a file or a folder{hint}")
    # The executor is closed before anything is said of an interrupt: by then no worker writes any
    # more.
    with opened(recipe.executor) as executor:
        how = {
            "inputs": _shapes(recipe.inputs),
            "key": recipe.key,
            "moments": recipe.moments,
            "executor": executor,
            **task.choices,
        }
        drop = listed(recipe.drop or ())
        if task.dry:
            asked = request(task.target, task.decided, **how)
            dropped_names(
                asked.source, asked.layer_tensors, drop
            )  # an error where a pattern is wrong
            return asked.plan()
        assert recipe.output is not None
        return compress_checkpoint(task.target, recipe.output, task.decided, drop=drop, **how)


def _shapes(inputs: str | list[int] | dict[str, Any] | None) -> Any:
    """Return the shapes of layers by pattern, from a file or from a recipe."""
    if not isinstance(inputs, str):
        return inputs
    file = Path(inputs)
    try:
        check_plain(file)
        if file.stat().st_size > _MOST_INPUTS:
            raise ValueError("it is larger than any such file")
        return parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise RankfoldError(f"inputs {inputs!r} cannot be read: {error}") from None


def _model(task: _Task) -> Plan:
    recipe = task.recipe
    assert recipe.weights is not None
    _refuse(recipe, ("moments", "executor", "drop"), "is for checkpoints; leave --weights out")
    if not recipe.weights.exists():
        raise RankfoldError(f"weights {str(recipe.weights)!r} is not a file or a folder")
    model = filled(called(task.target, "factory"), recipe.weights, recipe.key)
    takes_arrays = capabilities(registry().adapter(model)).takes_arrays
    tensor: Callable[[Any], Any] = (
        (lambda array: array) if takes_arrays is None else partial(takes_arrays.input_of, model)
    )
    inputs, batches = model_inputs(recipe.inputs, recipe.calibration, tensor)
    return _done(task, model, inputs, batches, lambda small: small.save(str(recipe.output)))


def _whole(task: _Task) -> Plan:
    """Compress the model of a file into a file of its kind, or a folder."""
    recipe = task.recipe
    why = f"is for checkpoints, and {task.target!r} is a model"
    _refuse(recipe, ("moments", "executor", "drop", "key"), why)
    if not isinstance(recipe.inputs, str | None):
        raise RankfoldError(f"inputs of {task.target!r} come from a file: name an .npz")
    source, target = Path(task.target), recipe.output
    kind = file_kind(source)
    if target is not None:
        if known_kind(target) is not None and file_kind(target) is not kind:
            raise RankfoldError(
                f"{str(target)!r} is no name for {kind.kind}; end it in {kind.suffixes[0]}"
            )
        check_writable(target, source)
    files = (None if f is None else Path(f) for f in (recipe.inputs, recipe.calibration))
    model = read_model(source, kind)
    inputs, batches = example_inputs(*files)

    def save(small: Compressed) -> None:
        assert target is not None
        if known_kind(target) is kind:
            write_model(small.model, small.plan, target, source)
        else:
            small.save(target)

    return _done(task, model, inputs, batches, save)


def _done(
    task: _Task, model: Any, inputs: Any, batches: Any, save: Callable[[Compressed], None]
) -> Plan:
    """Plan, or compress and save; return the plan."""
    recipe = task.recipe
    if isinstance(task.decided, Plan):
        small = apply(model, task.decided, inputs=inputs)
    else:
        how = {"inputs": inputs, "calibration": batches, **task.choices}
        if recipe.loss is not None:
            how["loss"] = recipe.loss
        if task.dry:
            return planned(model, task.decided, **how)
        refit = True if recipe.refit is None else recipe.refit
        small = compress(model, task.decided, refit=refit, **how)
    if not task.dry:
        save(small)
    return small.plan
