"""Commands as a user gives them, and what they are about."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

FACTORY = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 17, 3), nn.ReLU(), nn.Conv2d(17, 13, 3), nn.Flatten(),
                         nn.Linear(13 * 4, 11))

def broken():
    raise KeyError("no such thing")

def leaves():
    raise SystemExit(0)

def coloured():
    raise ValueError(chr(27) + "[31mred")
"""


Run = Callable[..., subprocess.CompletedProcess[str]]


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As a user runs it."""
    command = [sys.executable, "-m", "rankfold.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def network() -> nn.Module:
    import torch

    namespace: dict[str, object] = {}
    exec(FACTORY, namespace)
    torch.manual_seed(0)
    return namespace["make"]()
