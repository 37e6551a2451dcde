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
    checkpoint: Annotated[Path, typer.Argument(help="As for compress.")],
    policy: Annotated[
        str, typer.Option(help="Ranks for the savings: vbmf, energy:0.9, ratio:0.33, ...")
    ] = "energy:0.9",
) -> None:
    """Shows, for each tensor, its EVBMF and energy ranks and what each method would save."""
    from rankfold.cli.inspect import run

    run(checkpoint, policy)


@app.command()
def compress(
    target: Annotated[
        str,
        typer.Argument(
            help="A checkpoint: a .safetensors or .pt file, a folder with an index, or the index; "
            "or, with --weights, package.module:factory, called without arguments."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="The weights (.safetensors, or a .pt state dict) of a factory's model."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(help="vbmf, vbmf:WEAKEN, energy:0.9, ratio:0.33, ranks:16, budget:0.5, ..."),
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
    drop: Annotated[
        list[str] | None,
        typer.Option(help="Of a checkpoint: glob pattern of tensors not to copy."),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="Of a checkpoint: JSON from patterns of layers to the shape of their input "
            "without channels, to count MACs."
        ),
    ] = None,
    moments: Annotated[
        Path | None, typer.Option(help="Of a checkpoint: a file of calibration moments.")
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(help="Of a checkpoint: dask://HOST:PORT, processes:N or threads:N."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
) -> None:
    """Compresses a checkpoint, or a model, and writes plan.json and the weights."""
    from rankfold.cli.compress import Options, run

    run(
        Options(
            target,
            output,
            weights,
            policy,
            methods,
            include,
            exclude or [],
            drop or [],
            inputs,
            moments,
            executor,
            seed,
        )
    )


@app.command()
def plugins() -> None:
    """Lists the plugins, what they declare and what went wrong."""
    from rankfold.cli.plugins import run

    run()
