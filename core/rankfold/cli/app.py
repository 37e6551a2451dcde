"""The commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rankfold.cli.options import DEFAULT_POLICY, CompressOptions, with_options

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


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="As for compress.")],
    policy: Annotated[
        str, typer.Option(help="Ranks for the savings, as for compress.")
    ] = DEFAULT_POLICY,
) -> None:
    """Shows, for each tensor, its EVBMF and energy ranks and what each method would save."""
    from rankfold.cli.inspect import run

    run(checkpoint, policy)


def _compress(**options: Any) -> None:
    from rankfold.cli.compress import run

    run(CompressOptions(**options))


app.command(name="compress", help=CompressOptions.__doc__)(with_options(_compress, CompressOptions))


@app.command()
def report(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of a compressed model, its .onnx file, or a plan as JSON."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path(
        "report.html"
    ),
) -> None:
    """Writes one HTML page: what was done to each layer, why, and what it costs."""
    from rankfold.cli.report import run

    run(source, output)


@app.command()
def plugins() -> None:
    """Lists the plugins, what they declare and what went wrong."""
    from rankfold.cli.plugins import run

    run()
