"""The commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rankfold.cli.options import Recipe, with_options

app = typer.Typer(
    name="rankfold",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"rankfold {version('rankfold')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Shows the version."),
    ] = False,
) -> None:
    """Low-rank decomposition of trained networks."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the picture.")] = Path(
        "rankfold-demo"
    ),
    backend: Annotated[str, typer.Option(help="Framework to run it in.")] = "torch",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
) -> None:
    """Trains, compresses and fine-tunes a network on handwritten digits; takes two minutes."""
    # Imported within the commands, so that --help waits for none of them.
    from rankfold.cli.demo import run

    run(output, backend, epochs, seed)


_Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="A recipe: a TOML file of these options. Options given here come first."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Prints JSON in place of the table.")]


def _inspect(config: _Config = None, json: _Json = False, **options: Any) -> None:
    """Shows, for each tensor, its EVBMF and energy ranks and what each method would save."""
    from rankfold.cli.inspect import run
    from rankfold.cli.recipes import merged

    run(merged(Recipe(**options), config), as_json=json)


def _compress(
    config: _Config = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", help="A plan to carry out: JSON, or a folder or a file that has one."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plans everything and writes nothing.")
    ] = False,
    json: _Json = False,
    **options: Any,
) -> None:
    """Compresses a checkpoint, or a model, and writes plan.json and the weights."""
    from rankfold.cli.compress import run

    run(Recipe(**options), config, plan, dry_run=dry_run, as_json=json)


app.command(name="inspect")(with_options(_inspect, ("target", "policy", "key")))
app.command(name="compress")(with_options(_compress))


@app.command()
def report(
    source: Annotated[
        Path,
        typer.Argument(help="Folder or file of a compressed model, or a plan as JSON."),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="The HTML file to write; a model card if it is a .md."),
    ] = Path("report.html"),
) -> None:
    """Writes one HTML page: what was done to each layer, why, and what it costs."""
    from rankfold.cli.report import run

    run(source, output)


@app.command()
def plugins() -> None:
    """Lists the plugins, what they declare and what went wrong."""
    from rankfold.cli.plugins import run

    run()


@app.command()
def schema(
    what: Annotated[str, typer.Argument(help="plan or recipe.")],
) -> None:
    """Prints the JSON schema of plans or of recipes."""
    from rankfold.cli.schemas import run

    run(what)
