"""Results of a command on standard output: a table, or JSON and nothing else."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
from rich.text import Text

from rankfold.console import printable, wide_console
from rankfold.errors import RankfoldError
from rankfold.plan.contents import contents
from rankfold.plan.plan import Plan
from rankfold.plan.table import Contents, as_table, fitted


def quiet(as_json: bool) -> AbstractContextManager[Any]:
    """Send what the user's code prints to standard error, where standard output is JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def show(plan: Plan, output: Path | None, *, as_json: bool) -> None:
    """Print a plan.

    Args:
        plan: what was done, or what would be.
        output: where the result was written; None where nothing was.
        as_json: print it as JSON.

    Raises:
        RankfoldError: it cannot be printed; the message says that the result was written.
    """
    try:
        if as_json:
            print_json(plan)
        else:
            shown = contents(plan)
            end = "nothing written" if output is None else f"written to {printable(str(output))}"
            print_table(shown, end)
    except (OSError, SystemExit) as error:  # rich leaves so where a pipe is broken
        cause = error if isinstance(error, OSError) else os.strerror(errno.EPIPE)
        what = "the result was written to"
        done = "nothing was written" if output is None else f"{what} {str(output)!r}"
        raise RankfoldError(f"{done}, but the plan not to standard output: {cause}") from None


def print_table(table: Contents, end: str = "") -> None:
    """Print a table as wide as the terminal, and its last lines.

    Args:
        table: the table.
        end: of these lines, behind a semicolon; "" for none.

    Raises:
        OSError: standard output cannot be written.
    """
    _check_output()
    console = wide_console()
    shown = fitted(table, console.width)
    console.print(as_table(shown))
    lines = f"{shown.totals}; {end}" if end else shown.totals
    console.print(Text(lines), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as JSON.

    Raises:
        OSError: standard output cannot be written.
    """
    _check_output()
    text = value.to_json() if isinstance(value, Plan) else _json(value)
    print(text, flush=True)


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode()


def _check_output() -> None:
    # Python sets it so when the process was started without one; rich would print nothing and
    # succeed.
    if sys.stdout is None:
        raise OSError("it is closed")
