"""The commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="rankfold",
    help="Low-rank decomposition of trained networks.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    from rankfold.cli.demo import run

    run(output, backend, epochs, seed)


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file.")],
    policy: Annotated[
        str, typer.Option(help="Ranks for the savings: vbmf, energy:0.9, ratio:0.33, ...")
    ] = "energy:0.9",
) -> None:
    """Shows, for each tensor, its EVBMF and energy ranks and what each method would save."""
    from rankfold.cli.inspect import run

    run(checkpoint, policy)


@app.command()
def compress(
    factory: Annotated[
        str, typer.Argument(help="package.module:factory, called without arguments.")
    ],
    weights: Annotated[
        Path, typer.Option(help="The model's weights (.safetensors, or a .pt state dict).")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    policy: Annotated[
        str, typer.Option(help="vbmf, vbmf:WEAKEN, energy:0.9, ratio:0.33, ranks:16, ...")
    ] = "vbmf",
    methods: Annotated[
        str | None, typer.Option(help="Allowed methods, as svd,tucker2; default: all but cp.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Glob pattern of layers; repeat for several.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob pattern of layers to leave alone.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
) -> None:
    """Compresses a model and writes plan.json and weights.safetensors."""
    from rankfold.cli.compress import run

    run(factory, weights, output, policy, methods, include, exclude or [], seed)


@app.command()
def plugins() -> None:
    """Lists the plugins, what they declare and what went wrong."""
    from rankfold.cli.plugins import run

    run()
