"""ONNX files, with external data where the original has it or the file would be too large."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from rankfold.errors import RankfoldError
from rankfold.plugins import Plan
from rankfold_onnx.graph import Graphs
from rankfold_onnx.state_io import tensors

PLAN = "rankfold.plan"
"""Key of the plan among the metadata of a model."""
_LARGEST = 2**31 - 2**26
"""Bytes of a file without external data: protobuf ends at 2 GiB, and the plan comes on top."""


def read(file: Path) -> ModelProto:
    """Return the model of a file, with its external data.

    Raises:
        RankfoldError: the file or its data is missing or damaged.
    """
    return _loaded(file, with_data=True)


def read_plan(file: Path) -> Plan | None:
    """Return the plan by which the model of a file was compressed; None for one that was not.

    Raises:
        RankfoldError: the file is missing or damaged, or the plan in it is.
    """
    return plan_of(_loaded(file, with_data=False))


def _loaded(file: Path, *, with_data: bool) -> ModelProto:
    try:
        model = onnx.load(os.fspath(file), load_external_data=with_data)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise RankfoldError(f"{str(file)!r} cannot be read as an ONNX model: {error}") from None
    if not model.HasField("graph"):
        raise RankfoldError(f"{str(file)!r} is no ONNX model: it has no graph")
    return model


def plan_of(model: ModelProto) -> Plan | None:
    """Return the plan by which a model was compressed; None for one that was not."""
    text = next((entry.value for entry in model.metadata_props if entry.key == PLAN), None)
    return None if text is None else Plan.from_json(text)


def write(model: ModelProto, file: Path, plan: Plan, source: Path | None) -> None:
    """Write a model, with its plan among the metadata, in place of an earlier file.

    External data goes into one file beside it, named after it with ".data" behind.

    Args:
        model: the compressed model; it is not changed.
        file: to write.
        plan: of the model.
        source: the file that the original was read from; None where it was none.

    Raises:
        RankfoldError: it cannot be written; an earlier file is then as it was.
    """
    whole = ModelProto()
    whole.CopyFrom(model)
    entry = next((item for item in whole.metadata_props if item.key == PLAN), None)
    if entry is None:
        entry = whole.metadata_props.add()
    entry.key, entry.value = PLAN, msgspec.json.encode(plan).decode()
    external = whole.ByteSize() > _LARGEST or (source is not None and _is_external(source))
    data = f"{file.name}.data"
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".rankfold-") as folder:
            fresh = Path(folder) / file.name
            onnx.save_model(
                whole,
                os.fspath(fresh),
                save_as_external_data=external,
                all_tensors_to_one_file=True,
                location=data if external else None,
                convert_attribute=external,
            )
            # The data first: a model that names data which is not there yet cannot be opened.
            if external and (Path(folder) / data).exists():
                (Path(folder) / data).replace(file.parent / data)
            fresh.replace(file)
    except (OSError, ValueError) as error:
        raise RankfoldError(f"{str(file)!r} cannot be written: {error}") from None


def _is_external(source: Path) -> bool:
    """Return whether a model has its tensors in other files."""
    try:
        model = onnx.load(os.fspath(source), load_external_data=False)
    except (OSError, DecodeError, ValueError):
        return False
    stored = tensors(Graphs(model)).values()
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in stored)
