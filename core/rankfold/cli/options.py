"""The options of `rankfold compress`, declared once: for the command line and for what runs it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

DEFAULT_POLICY = "vbmf"


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Compresses a checkpoint, or a model, and writes plan.json and the weights."""

    target: Annotated[
        str,
        typer.Argument(
            help="A checkpoint: a .safetensors or .pt file, a folder with an index, or the index; "
            "a file with a whole model (.onnx); "
            "or, with --weights, package.module:factory, called without arguments."
        ),
    ]
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write; of an .onnx model, a file.")
    ]
    weights: Annotated[
        Path | None,
        typer.Option(help="The weights (.safetensors, or a .pt state dict) of a factory's model."),
    ] = None
    policy: Annotated[
        str,
        typer.Option(
            help="vbmf, energy:0.9, ratio:1/3, ranks:16, budget:params=0.5, ... or any field of a "
            "policy, several as budget:macs=0.5,params=0.4."
        ),
    ] = DEFAULT_POLICY
    methods: Annotated[
        str | None, typer.Option(help="Allowed methods, as svd,tucker2; default: all but cp.")
    ] = None
    include: Annotated[
        list[str] | None, typer.Option(help="Glob pattern of layers; repeat for several.")
    ] = None
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob pattern of layers to leave alone.")
    ] = None
    drop: Annotated[
        list[str] | None,
        typer.Option(help="Of a checkpoint: glob pattern of tensors not to copy."),
    ] = None
    key: Annotated[
        str | None,
        typer.Option(help="Of a .pt with several states: the key of the one that is meant."),
    ] = None
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="Of a checkpoint: JSON from patterns of layers to the shape of their input "
            "without channels, to count MACs. Of a whole model: an .npz of its inputs by name."
        ),
    ] = None
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Of a whole model: an .npz of inputs by name, with the examples along the first "
            "axis."
        ),
    ] = None
    moments: Annotated[
        Path | None, typer.Option(help="Of a checkpoint: a file of calibration moments.")
    ] = None
    executor: Annotated[
        str | None,
        typer.Option(help="Of a checkpoint: dask://HOST:PORT, processes:N or threads:N."),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0


def with_options(function: Callable[..., None], options: type[Any]) -> Callable[..., None]:
    """Give a function of keywords the signature that a dataclass of options has.

    Typer reads the options of a command from the signature of its function.
    """
    # With `include_extras`, for the names and the help stand in the annotations' extras.
    hints = get_type_hints(options, include_extras=True)
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty
                if field.default is dataclasses.MISSING
                else field.default,
                annotation=hints[field.name],
            )
            for field in dataclasses.fields(options)
        ]
    )
    # Typer looks at both: at the signature for the order and the defaults, here for the types.
    function.__annotations__ = hints
    return function
