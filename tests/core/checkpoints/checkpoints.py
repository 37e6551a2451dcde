"""Checkpoints for tests: made of random tensors, named and laid out as PyTorch's are."""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def sharded(folder: Path, *, files: int = 4, layers: int = 3, shape=(40, 56)) -> Path:
    """A folder with several files and their index."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    owner = {}
    for part in range(files):
        tensors = {}
        for layer in range(layers):
            path = f"layers.{part}.{layer}"
            tensors[f"{path}.weight"] = rng.standard_normal(shape, dtype=np.float32)
            tensors[f"{path}.bias"] = rng.standard_normal(shape[0], dtype=np.float32)
            tensors[f"{path}.norm.weight"] = rng.standard_normal(shape[0], dtype=np.float32)
        name = f"model-{part + 1:05}-of-{files:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        owner |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 0}, "weight_map": owner}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def contents(folder: Path) -> dict[str, str]:
    """The hash of each file of a folder."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
