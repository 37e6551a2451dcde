"""Planning holds one layer at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.peak_memory import PEAK

pytest.importorskip("torch")

SIDE = 768
LAYER = 4 * SIDE * SIDE
SCRIPT = (
    PEAK
    + """
import torch
import rankfold as rf
from torch import nn

side = int(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(8)))
rf.plan(nn.Linear(48, 32), rf.Energy(0.5))  # what is imported on the way does not count


before = peak()
for layers in (2, 8):
    plan = rf.plan(model[:layers], rf.Energy(0.3), include="*")
    assert len(plan.replaced) == layers
    print(peak() - before)
"""
)


@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
def test_the_peak_is_a_small_multiple_of_the_largest_layer() -> None:
    command = [sys.executable, "-c", SCRIPT, str(SIDE)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = map(int, run.stdout.split())
    assert LAYER < few < 20 * LAYER
    assert many < few + 3 * LAYER  # eight layers take what two do
