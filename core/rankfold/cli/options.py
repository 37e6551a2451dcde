"""The options of the commands, declared once: for the command line, for recipes, for what runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import typer

from rankfold.decompose.base import Placement
from rankfold.plugins.registry import registry
from rankfold.storage.file_formats import SAFETENSORS

DEFAULT_POLICY = "vbmf"
_SPECS = tuple(registry().adapters.values())
_TENSORS = " or ".join(
    (SAFETENSORS, *(suffix for s in _SPECS for kind in s.formats for suffix in kind.suffixes[:1]))
)
"""Files of tensors by their usual suffix: ".safetensors or .pt"."""
_FOLDERS = "".join(f", {kind.kind}" for spec in _SPECS for kind in spec.formats if kind.marker)
"""Folders of tensors that plugins read: ", an orbax checkpoint"."""
_MODELS = ", ".join(kind.suffixes[0] for spec in _SPECS for kind in spec.model_files)
"""Files of whole models by their usual suffix; "" where no plugin reads any."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Recipe of a compression, as a file in TOML and as options of a command.

    Of a field with several types the first is that of the command line. None is what was not given.
    """

    target: Annotated[
        str | None,
        typer.Argument(
            help=f"A checkpoint: a {_TENSORS} file, a folder with an index, or the index"
            f"{_FOLDERS}; a file with a whole model ({_MODELS or 'with a plugin that reads it'}); "
            "or, with --weights, package.module:factory, called without arguments."
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder to write; of a file with a whole model, a file."
        ),
    ] = None
    weights: Annotated[
        Path | None,
        typer.Option(help=f"The weights of a factory's model: a {_TENSORS} file{_FOLDERS}."),
    ] = None
    policy: Annotated[
        str | dict[str, Any] | None,
        typer.Option(
            help="vbmf, energy:0.9, ratio:1/3, ranks:16, budget:params=0.5, ... or any field of a "
            "policy, several as budget:macs=0.5,params=0.4; default: vbmf. In a recipe also a "
            "table of its name and its fields."
        ),
    ] = None
    methods: Annotated[
        str | list[str] | None,
        typer.Option(help="Allowed methods, as svd,tucker2; default: all but cp."),
    ] = None
    include: Annotated[
        list[str] | str | None, typer.Option(help="Glob pattern of layers; repeat for several.")
    ] = None
    exclude: Annotated[
        list[str] | str | None, typer.Option(help="Glob pattern of layers to leave alone.")
    ] = None
    overrides: Annotated[
        list[str] | dict[str, str | dict[str, Any]] | None,
        typer.Option(
            "--override",
            help="PATTERN=POLICY: a policy for some layers; repeat for several. In a recipe also a "
            "table of policies by pattern.",
        ),
    ] = None
    drop: Annotated[
        list[str] | str | None,
        typer.Option(help="Of a checkpoint: glob pattern of tensors not to copy."),
    ] = None
    key: Annotated[
        str | None,
        typer.Option(help="Of a file with several states: the key of the one that is meant."),
    ] = None
    inputs: Annotated[
        str | list[int] | dict[str, Any] | None,
        typer.Option(
            help="Example inputs, to count MACs. With --weights: shapes, as 1,3,224,224 or "
            "'ids=1,77:int64 mask=1,77:int64'; an .npz or .safetensors file; or "
            "package.module:inputs. Of a checkpoint: JSON from patterns of layers to the shape of "
            "their input without channels. Of a whole model: an .npz or .safetensors file. In a "
            "recipe also a shape, or a table in place of names or of JSON."
        ),
    ] = None
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Of a model: an .npz or .safetensors file of inputs by name, with the examples "
            "along the first axis; with --weights also package.module:batches."
        ),
    ] = None
    loss: Annotated[
        Literal["cross_entropy", "outputs"] | None,
        typer.Option(help="With --calibration: cross_entropy, or outputs; default: outputs."),
    ] = None
    refit: Annotated[
        bool | None,
        typer.Option(help="With --calibration: refit each layer to make up for those before it."),
    ] = None
    moments: Annotated[
        Path | None, typer.Option(help="Of a checkpoint: a file of calibration moments.")
    ] = None
    executor: Annotated[
        str | None,
        typer.Option(help="Of a checkpoint: dask://HOST:PORT, processes:N or threads:N."),
    ] = None
    placement: Annotated[
        Placement | None,
        typer.Option(help="Of the scale: balanced over a chain (the default), or classical."),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness; default: 0.")] = None


def described(name: str) -> str:
    """Return what the help says of a field."""
    _, option = get_args(get_type_hints(Recipe, include_extras=True)[name])
    return str(option.help)


def with_options(
    function: Callable[..., None], names: tuple[str, ...] = Recipe.__struct_fields__
) -> Callable[..., None]:
    """Give a function fields of a recipe as keywords, behind those that it has.

    Typer reads the options of a command from the signature of its function.
    """
    # With `include_extras`, for the names and the help stand in the annotations' extras.
    hints = get_type_hints(function, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    fields = get_type_hints(Recipe, include_extras=True)
    for name in names:
        kind, option = get_args(fields[name])
        hints[name] = Annotated[_on_command_line(kind), option]
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name]
            )
        )
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    # Typer looks at both: at the signature for the order and the defaults, here for the types.
    function.__annotations__ = hints
    return function


def _on_command_line(kind: Any) -> Any:
    """Return the type that the command line takes for a field: the first one, or None."""
    first = next(part for part in get_args(kind) if part is not NoneType)
    return Union[str if get_origin(first) is Literal else first, None]  # noqa: UP007 - a value
