"""Train a compressed model towards the original's outputs: schedule, early stopping, acceptance.

What frameworks do each in their way, a step and a loss, is an adapter's `Student`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from rankfold.adapters.capabilities import Capabilities
from rankfold.adapters.distils import Student
from rankfold.calibration.batches import Calibration
from rankfold.calibration.losses import estranged
from rankfold.calibration.perturbations import PerturbedBatches
from rankfold.errors import RankfoldError
from rankfold.faults import of_adapter
from rankfold.plan.plan import Plan
from rankfold.progress import progress

STEPS = 300
"""Steps unless told: half a minute of one core for the networks of the benchmark. At three times as
many the VGG-like one still gained, but less than in the first."""
_RATE = 0.01
"""Largest movement of a parameter per step, as a share of the size of its tensor. At three times
of it a classifier of house numbers, near its original from the start, lost 0.2 points on data of
another kind where it gains 1.6 at this."""
_WARM_UP = 20
"""Steps in which the rate rises, at first and after going back: Adam's estimates are then of single
batches."""
_LOOKS = 24
"""Times that the held-out examples are looked at in a full run."""
_PATIENCE = 12
"""Looks without a better loss, half of a run, after which it goes back to the best and on at a
lower rate. Before that the falling rate does better: a residual network was worse than at first for
ten looks, and at half of its loss in the end. From there on half as many looks end the training."""
_LOWER = 0.2
"""What the rate is multiplied by then: a model that is near the original already overshoots."""
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
        """Note on the training for a plan."""
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


def distilled_plan(plan: Plan, batches: Calibration, outcome: Distilled) -> Plan:
    """Return the plan of a compressed model as it is after distillation.

    Args:
        plan: of before.
        batches: examples and the loss.
        outcome: of the distillation.
    """
    # What was said of a model that is not the original any more is said anew where it still holds.
    stale = None if plan.loss is None else estranged(batches, plan.loss[1])
    remark = estranged(batches, outcome.loss[1])
    notes = [note for note in plan.notes if note != stale]
    notes += [outcome.note] if remark is None else [outcome.note, remark]
    return msgspec.structs.replace(plan, loss=outcome.loss, notes=tuple(notes))


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
    looks_since, every, patience, lowered = 0, max(1, steps // _LOOKS), _PATIENCE, 1.0
    began = time.monotonic()
    taken, since, through = 0, 0, 0.0
    while through < 1.0 and patience > _PATIENCE // 4:
        advance(f"loss {best:.3g}")
        # The rate falls to nothing at the end, whichever end comes first.
        falling = 0.5 * (1 + math.cos(math.pi * through))
        since, taken = since + 1, taken + 1
        student.step(draw(), _RATE * lowered * min(1.0, since / _WARM_UP) * falling)
        through = max(taken / steps, (time.monotonic() - began) / seconds)
        if taken % every and through < 1.0:
            continue
        loss = student.held_out_loss()
        if loss < best:
            best, looks_since = loss, 0
            student.keep()
            continue
        looks_since += 1
        if looks_since == patience or not math.isfinite(loss):
            student.restore()
            looks_since, since, patience, lowered = 0, 0, patience // 2, lowered * _LOWER
    return taken
