"""Train a compressed model towards the original's outputs: schedule, early stopping, acceptance.

What frameworks do each in their way, a step and a loss, is an adapter's `Student`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankfold.adapters.capabilities import Capabilities
from rankfold.adapters.distils import Student
from rankfold.calibration.batches import Calibration
from rankfold.calibration.perturbations import PerturbedBatches
from rankfold.errors import RankfoldError
from rankfold.faults import of_adapter
from rankfold.progress import progress

STEPS = 300
"""Steps unless told. Of 64 examples each they take half a minute of one core for networks of 10⁷
multiply-accumulates an example; at three times as many the loss still falls, but by less."""
_RATE = 0.03
"""Largest movement of a parameter per step, as a share of the size of its tensor."""
_WARM_UP = 20
"""Steps in which the rate rises: Adam's first estimates are of single batches."""
_LOOKS = 12
"""Times that the held-out examples are looked at in a full run."""
_PATIENCE = 5
"""Looks without a better loss after which training ends. Late in a run the falling rate gains what
a plateau before did not, so it is nearly half of them."""
_FEWEST = 4
"""Examples of which one can be held out."""


@dataclass(frozen=True, eq=False)
class Distilled:
    """Outcome of a distillation.

    Attributes:
        model: the trained one; that which was given, itself, where training gained nothing.
        loss: on the held-out examples (of the original, of `model`).
        before: the loss of the model that was given.
        steps: that were taken.
    """

    model: Any
    loss: tuple[float, float]
    before: float
    steps: int

    @property
    def note(self) -> str:
        """What is to be said of it in a plan."""
        if self.loss[1] < self.before:
            text = f"from {self.before:.3g} to {self.loss[1]:.3g}"
        else:
            text = f"not below {self.before:.3g}: the model is as it was"
        return f"distilled in {self.steps} steps: the loss on held-out examples went {text}"


def check_steps(who: str, steps: object) -> None:
    """Check a number of steps.

    Raises:
        RankfoldError: it is no int from 1 on.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise RankfoldError(f"{who}: steps {steps!r}; use an int from 1 on, {STEPS} for a start")


def distilled(
    can: Capabilities,
    small: Any,
    original: Any,
    batches: Calibration,
    *,
    steps: int,
    seconds: float = math.inf,
    seed: int,
) -> Distilled:
    """Train a copy of a compressed model, and return it if it is better on held-out examples.

    Args:
        can: what the adapter of both models offers.
        small: the compressed model.
        original: what it was compressed from.
        batches: examples, of which a quarter is held out, and the loss.
        steps: that are taken at most.
        seconds: after which no further step begins.
        seed: draws and perturbs the examples.

    Raises:
        RankfoldError: the adapter trains no models, there are too few examples, or a model fails.
    """
    if can.distils is None or can.calibrates is None:
        raise RankfoldError(f"{can.name} cannot distil; fine-tune the model in a loop of your own")
    if batches.examples < _FEWEST:
        raise RankfoldError(
            f"distil: {batches.examples} examples; give at least {_FEWEST}, better 256"
        )
    held_out = batches.held_out()
    rng = np.random.default_rng(seed)
    draws = PerturbedBatches(batches.fitted(), can.distils.image_axes, rng)
    with (
        of_adapter(can.adapter),
        progress("distilling", steps) as advance,
        can.distils.student(original, small, held_out) as student,
    ):
        taken = _train(student, draws.draw, steps, seconds, advance)
        best = student.kept()
    with of_adapter(can.adapter):
        # Measured anew on the models that are handed out, by what plans quote: whatever went wrong
        # on the way, a worse model is not returned.
        before = can.calibrates.divergence(original, small, held_out)
        after = can.calibrates.divergence(original, best, held_out)
    if not after[1] < before[1]:
        return Distilled(small, before, before[1], taken)
    return Distilled(best, after, before[1], taken)


def _train(
    student: Student,
    draw: Callable[[], Any],
    steps: int,
    seconds: float,
    advance: Callable[[str], None],
) -> int:
    """Take steps, note the best parameters on the way, and return how many steps were taken."""
    best = student.held_out_loss()
    student.keep()
    looks_since, every = 0, max(1, steps // _LOOKS)
    began = time.monotonic()
    taken, through = 0, 0.0
    while through < 1.0 and looks_since < _PATIENCE:
        advance(f"loss {best:.3g}")
        # The rate falls to nothing at the end, whichever end comes first.
        rate = _RATE * min(1.0, (taken + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * through))
        student.step(draw(), rate)
        taken += 1
        through = max(taken / steps, (time.monotonic() - began) / seconds)
        if taken % every and through < 1.0:
            continue
        loss = student.held_out_loss()
        if loss < best:
            best, looks_since = loss, 0
            student.keep()
        elif math.isfinite(loss):
            looks_since += 1
        else:  # nothing comes back from there
            break
    return taken
