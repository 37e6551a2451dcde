"""Planning holds one layer at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")

SIDE = 1280
LAYER = 4 * SIDE * SIDE
SCRIPT = """
import resource, sys
import torch
import rankfold as rf
from torch import nn

layers, side = map(int, sys.argv[1:])
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(layers)))
rf.plan(nn.Linear(48, 32), rf.Energy(0.5))  # what is imported on the way does not count
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
plan = rf.plan(model, rf.Energy(0.3), include="*")
assert len(plan.replaced) == layers
print(unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def beyond_the_model(layers: int) -> int:
    """Bytes of memory that planning takes at its peak besides the model."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(layers), str(SIDE)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
def test_the_peak_is_a_small_multiple_of_the_largest_layer() -> None:
    few, many = beyond_the_model(2), beyond_the_model(8)
    assert few < 20 * LAYER
    assert many < few + 3 * LAYER  # eight layers take what two do
