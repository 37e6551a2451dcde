"""The command line: `rankfold demo`, `inspect`, `compress`, `report`, `plugins` and `schema`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper

from rankfold.errors import RankfoldError
from rankfold.faults import told


def main() -> None:
    """Run the command line; an error is one line on standard error and exit code 2."""
    from rankfold.cli.logs import progress_logged
    from rankfold.cli.signals import Terminated, end_in_order

    _replace_what_cannot_be_encoded()
    end_in_order()
    try:
        # Imported here, as it loads the plugins: what one raises is told in one line, too.
        from rankfold.cli.app import app

        # Not in click's standalone mode, which would print errors in its own way and end the
        # process.
        with progress_logged():
            code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except RankfoldError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        # 128 and the number of SIGINT, as shells report it.
        raise SystemExit(130) from None
    except Terminated as error:
        raise SystemExit(error.code) from None
    except Exception as error:  # the outermost boundary: a user never meets a traceback
        # Errors of usage are click's; they are told by this method, and click need not be imported
        # for it.
        usage: Callable[[], str] | None = getattr(error, "format_message", None)
        if usage is not None:
            _fail(f"{usage()} (see --help)")
        if os.environ.get("RANKFOLD_DEBUG"):
            raise
        _fail(f"{told(error)} (RANKFOLD_DEBUG=1 shows where)")
    raise SystemExit(code if isinstance(code, int) else 0)


def _replace_what_cannot_be_encoded() -> None:
    out = sys.stdout
    # A terminal that cannot show "×" or "→" gets "?" for it, where an error would end the run after
    # the work is done. Standard output may also be None, or something else under a test.
    if isinstance(out, TextIOWrapper) and out.errors in ("strict", "surrogateescape"):
        out.reconfigure(errors="replace")


def _fail(message: str) -> None:
    from rankfold.console import printable

    print(f"rankfold: {printable(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(2)
