"""transformers' own conversions of tensors, carried out when a checkpoint is compressed.

It stacks the matrices of experts, splits fused projections, and more, when it loads a model. What
is compressed is what the model computes with, so these are carried out before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch

from rankfold.linalg import Array
from rankfold.plugins import Conversion
from rankfold.storage.safetensors_header import numpy_dtype
from rankfold_transformers.file_names import FileNames

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_BITS = {2: np.int16, 4: np.int32, 8: np.int64}


def conversions_of(
    model: Any, tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> Iterator[Conversion]:
    """Yield the conversions of the tensors of a checkpoint.

    Those that depend on more than shapes, or would be made once more of what they gave, are left
    to transformers.

    Args:
        model: of transformers, without values.
        tensors: type and shape of each tensor in the files, by name.
    """
    names = FileNames(model)
    by_pattern = {pattern: c for c in names.converters for pattern in c.source_patterns}
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, (target, pattern) in names.of(tensors).items():
        if pattern is not None:
            groups.setdefault(target, []).append((name, pattern))
    for target, sources in groups.items():
        kinds = {tensors[name][0] for name, _ in sources}
        if len(kinds) != 1 or not kinds <= _DTYPES.keys():
            continue
        (kind,) = kinds
        carry_out = partial(_carried_out, model, by_pattern[sources[0][1]], target, sources)
        shapes = {
            name: torch.empty(tensors[name][1], dtype=_DTYPES[kind], device="meta")
            for name, _ in sources
        }
        try:
            results = carry_out(shapes)
        # A converter may look at values, or at a model that holds some.
        except Exception:
            continue
        if _is_final(names, results):
            targets = {name: (kind, tuple(tensor.shape)) for name, tensor in results.items()}
            yield Conversion(
                tuple(name for name, _ in sources), targets, partial(_converted, carry_out, kind)
            )


def _is_final(names: FileNames, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether tensors are the model's, and loaded under their names as they are."""
    for name, tensor in tensors.items():
        if name not in names.state or names.state[name].shape != tensor.shape:
            return False
    return all(names.of([name])[name] == (name, None) for name in tensors)


def _carried_out(
    model: Any,
    converter: Any,
    target: str,
    sources: list[tuple[str, str]],
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Convert tensors as `from_pretrained` does."""
    fresh = deepcopy(converter)
    for name, pattern in sources:
        fresh.add_tensor(target, name, pattern, tensors[name])
    values = fresh.convert(target, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in values.items()}


def _converted(carry_out: Any, kind: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Convert arrays, whose types PyTorch need not know by the same name."""
    tensors = {name: _tensor(array, kind) for name, array in arrays.items()}
    return {name: _array(tensor, kind) for name, tensor in carry_out(tensors).items()}


def _tensor(array: Array, kind: str) -> torch.Tensor:
    bits = np.array(array, order="C").view(_BITS[array.dtype.itemsize])
    return torch.from_numpy(bits).view(_DTYPES[kind])


def _array(tensor: torch.Tensor, kind: str) -> Array:
    dtype = numpy_dtype(kind)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return tensor.contiguous().view(integers).numpy().view(dtype)
