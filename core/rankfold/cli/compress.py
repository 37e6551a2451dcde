"""`rankfold compress`: a checkpoint, a file with a model, or a factory's with its weights."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

from rich.text import Text

from rankfold.checkpoints.compress import compress_checkpoint
from rankfold.cli.arguments import make_model
from rankfold.cli.example_inputs import example_inputs
from rankfold.cli.executors import opened
from rankfold.cli.options import CompressOptions
from rankfold.cli.signals import Terminated
from rankfold.console import printable, wide_console
from rankfold.errors import RankfoldError
from rankfold.pipeline.api import compress
from rankfold.plan.contents import contents
from rankfold.plan.plan import Plan
from rankfold.plan.table import as_table
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy
from rankfold.storage.folder import check_replaceable
from rankfold.storage.model_files import (
    check_writable,
    file_kind,
    known_kind,
    read_model,
    write_model,
)
from rankfold.storage.safetensors_header import check_plain, parse_json

_MOST_INPUTS = 16 * 2**20


def run(options: CompressOptions) -> None:
    """Compress, save and print the plan.

    Raises:
        RankfoldError: any argument is wrong, and nothing is written then; or only the plan could
            not be printed, and the message says so.
    """
    policy = registry().policy(options.policy)
    names = options.methods
    methods = None if names is None else [name.strip() for name in names.split(",")]
    whole = options.weights is None and known_kind(Path(options.target)) is not None
    # Looked at before a model is made and decomposed, and not only when it is to be written.
    if not (whole and known_kind(options.output)):
        check_replaceable(options.output)
    if options.calibration is not None and not whole:
        raise RankfoldError("--calibration is for files of whole models, such as .onnx")
    compressed = _whole if whole else _checkpoint if options.weights is None else _model
    plan, output = compressed(options, policy, methods), options.output
    try:
        _show(plan, output)
    except (OSError, SystemExit) as error:  # rich leaves so where a pipe is broken
        cause = error if isinstance(error, OSError) else os.strerror(errno.EPIPE)
        raise RankfoldError(
            f"the result was written to {str(output)!r}, but the plan not to standard output: "
            f"{cause}"
        ) from None


def _checkpoint(options: CompressOptions, policy: Policy, methods: list[str] | None) -> Plan:
    if not Path(options.target).exists():
        factory = ":" in options.target
        hint = "; a factory needs --weights" if factory else ""
        raise RankfoldError(f"checkpoint {options.target!r} is not a file or a folder{hint}")
    try:
        # The executor is closed before anything is said of an interrupt: by then no worker writes
        # any more.
        with opened(options.executor) as executor:
            return compress_checkpoint(
                options.target,
                options.output,
                policy,
                inputs=_inputs(options.inputs),
                methods=methods,
                include=options.include,
                exclude=options.exclude or (),
                drop=options.drop or (),
                seed=options.seed,
                moments=options.moments,
                executor=executor,
            )
    except (KeyboardInterrupt, Terminated):
        print(
            "rankfold: interrupted; what is finished is kept for the same command", file=sys.stderr
        )
        raise


def _inputs(file: Path | None) -> Any:
    if file is None:
        return None
    try:
        check_plain(file)
        if file.stat().st_size > _MOST_INPUTS:
            raise ValueError("it is larger than any such file")
        return parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise RankfoldError(f"inputs {str(file)!r} cannot be read: {error}") from None


def _model(options: CompressOptions, policy: Policy, methods: list[str] | None) -> Plan:
    weights = options.weights
    assert weights is not None
    for name in ("inputs", "moments", "executor"):
        if getattr(options, name) is not None:
            raise RankfoldError(f"--{name} is for checkpoints; leave --weights out")
    if not weights.is_file():
        raise RankfoldError(f"weights {str(weights)!r} is not a file")
    model = make_model(options.target)
    # Tensors of the file must fit the model in full, so a wrong factory is told before anything is
    # done.
    model = registry().adapter(model).load_weights(model, weights)
    small = compress(
        model,
        policy,
        methods=methods,
        include=options.include,
        exclude=options.exclude or (),
        seed=options.seed,
        inplace=False,
    )
    small.save(options.output)
    return small.plan


def _whole(options: CompressOptions, policy: Policy, methods: list[str] | None) -> Plan:
    """Compress the model of a file into a file of its kind, or a folder."""
    for name in ("moments", "executor", "drop"):
        if getattr(options, name):
            raise RankfoldError(f"--{name} is for checkpoints, and {options.target!r} is a model")
    source, target = Path(options.target), options.output
    kind = file_kind(source)
    if known_kind(target) is not None and file_kind(target) is not kind:
        raise RankfoldError(
            f"{str(target)!r} is no name for {kind.kind}; end it in {kind.suffixes[0]}"
        )
    check_writable(target, source)
    model = read_model(source, kind)
    inputs, batches = example_inputs(options.inputs, options.calibration)
    small = compress(
        model,
        policy,
        inputs=inputs,
        calibration=batches,
        methods=methods,
        include=options.include,
        exclude=options.exclude or (),
        seed=options.seed,
    )
    if known_kind(target) is kind:
        write_model(small.model, small.plan, target, source)
    else:
        small.save(target)
    return small.plan


def _show(plan: Plan, output: Path) -> None:
    # Python sets it so when the process was started without one; rich would print nothing and
    # succeed.
    if sys.stdout is None:
        raise OSError("it is closed")
    console = wide_console()
    shown = contents(plan)
    console.print(as_table(shown))
    console.print(Text(f"{shown.totals}; written to {printable(str(output))}"), soft_wrap=True)
