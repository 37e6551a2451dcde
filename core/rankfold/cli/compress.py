"""`rankfold compress`: a model made by a factory, with weights from a file, to a folder."""

from __future__ import annotations

from pathlib import Path

from rankfold.checkpoint import check_replaceable
from rankfold.cli.arguments import make_model, read_policy
from rankfold.errors import RankfoldError
from rankfold.pipeline import compress
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
        RankfoldError: any argument is wrong; nothing is written then.
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
    console = wide_console()
    console.print(plan_table(small.plan))
    console.print(literal(f"{totals(small.plan)}; written to {output}"), soft_wrap=True)
