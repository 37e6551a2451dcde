"""Safetensors files written byte by byte, sound and unsound ones."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SIZES = {
    **dict.fromkeys(("F64", "I64"), 8),
    **dict.fromkeys(("F32", "I32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}


def raw(file: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file of a header, given as JSON text or as what it says, and of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = (len(text) if length is None else length).to_bytes(8, "little", signed=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(start + text + data)
    return file


def entry(dtype: str, shape: tuple[int, ...], begin: int = 0) -> dict[str, object]:
    """What a header says of a tensor."""
    size = int(np.prod(shape)) * SIZES[dtype]
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}


def sound(
    file: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A file of tensors: type, shape and bytes by name."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, shape, values) in tensors.items():
        header[name] = entry(dtype, shape, len(data))
        data += values
    return raw(file, header, data)


def normal(seed: int, *shape: int) -> bytes:
    """Random float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).tobytes()


def sharded(folder: Path, files: int = 3, layers: int = 2, shape=(24, 40)) -> Path:
    """A checkpoint in several files, with their index."""
    owner = {}
    for place in range(files):
        tensors = {}
        for layer in range(layers):
            path, seed = f"blocks.{place}.{layer}", 100 * place + layer
            tensors[f"{path}.fc.weight"] = ("F32", shape, normal(seed, *shape))
            tensors[f"{path}.fc.bias"] = ("F32", shape[:1], normal(seed, *shape[:1]))
            tensors[f"{path}.norm.weight"] = ("F32", (7,), normal(seed, 7))
        name = f"model-{place + 1:05}-of-{files:05}.safetensors"
        sound(folder / name, tensors, {"format": "pt"})
        owner |= dict.fromkeys(tensors, name)
    indexed(folder, owner)
    return folder


def indexed(folder: Path, weight_map: object) -> Path:
    """An index."""
    file = folder / "model.safetensors.index.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return file


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
