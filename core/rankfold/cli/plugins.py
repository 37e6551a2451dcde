"""`rankfold plugins`: what is installed, and what is wrong with it."""

from __future__ import annotations

from importlib.util import find_spec

from rich.table import Table

from rankfold.console import literal, wide_console
from rankfold.plugins.hookspecs import API
from rankfold.plugins.registry import registry


def run() -> None:
    """Print the plugins in use, what they declare, and every problem."""
    installed = registry()
    console = wide_console()
    table = Table(title=f"Plugins (API {API[0]}.{API[1]})", title_justify="left")
    for column in ("plugin", "distribution", "declares"):
        table.add_column(column, overflow="fold")
    for name in installed.plugins:
        cells = (name, installed.plugins[name], ", ".join(installed.declared[name]))
        table.add_row(*map(literal, cells))
    console.print(table)
    for problem in installed.problems:
        console.print(literal(str(problem)), style="bold red", soft_wrap=True)
    frameworks = {
        spec.model_types[0].partition(".")[0].partition(":")[0]
        for spec in installed.adapters.values()
        if spec.model_types
    }
    if not any(map(find_spec, sorted(frameworks))):
        commands = dict.fromkeys(spec.install for spec in installed.adapters.values())
        remedy = " or ".join(filter(None, commands)) or "install a framework and its plugin"
        console.print(
            literal(
                "No framework is installed, so that models cannot be compressed, safetensors "
                f"files can: {remedy}"
            ),
            style="bold red",
            soft_wrap=True,
        )
    elif not installed.problems:
        console.print("No problems.")
