"""`rankfold compress`: a model made by a factory, with weights from a file, to a folder."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from rankfold.checkpoint import check_replaceable
from rankfold.cli.arguments import make_model, read_policy
from rankfold.errors import RankfoldError
from rankfold.pipeline import compress
from rankfold.plan import Plan
from rankfold.registry import registry
from rankfold.report.literal import literal
from rankfold.report.table import plan_table, totals, wide_console


def run(
    factory: str,
    weights: Path,
    output: Path,
    policy: str,
    methods: str | None,
    include: list[str] | None,
    exclude: list[str],
    seed: int,
) -> None:
    """Compresses, saves and prints the plan.

    Raises:
        RankfoldError: any argument is wrong, and nothing is written then; or only the plan could
            not be printed, and the message says so.
    """
    chosen = read_policy(policy)
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    check_replaceable(output)
    if not weights.is_file():
        raise RankfoldError(f"weights {str(weights)!r} is not a file")
    model = make_model(factory)
    model = registry().adapter(model).load_weights(model, weights)
    small = compress(
        model, chosen, methods=names, include=include, exclude=exclude, seed=seed, inplace=False
    )
    small.save(output)
    try:
        _show(small.plan, output)
    except (OSError, SystemExit) as error:  # rich leaves so where a pipe is broken
        cause = error if isinstance(error, OSError) else os.strerror(errno.EPIPE)
        raise RankfoldError(
            f"the result was written to {str(output)!r}, but the plan not to standard output: "
            f"{cause}"
        ) from None


def _show(plan: Plan, output: Path) -> None:
    if sys.stdout is None:
        raise OSError("it is closed")
    console = wide_console()
    console.print(plan_table(plan))
    console.print(literal(f"{totals(plan)}; written to {output}"), soft_wrap=True)
