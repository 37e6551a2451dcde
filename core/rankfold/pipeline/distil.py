"""`distil`: train the factors of a compressed model on unlabelled examples."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from rankfold.adapters.base import Adapter
from rankfold.adapters.capabilities import Capabilities, capabilities
from rankfold.calibration.batches import Calibration, Loss
from rankfold.errors import RankfoldError
from rankfold.pipeline.distillation import (
    STEPS,
    Distilled,
    check_steps,
    distilled,
    distilled_plan,
)
from rankfold.pipeline.result import Compressed
from rankfold.pipeline.session import check_seed
from rankfold.plugins.model_lock import exclusive
from rankfold.plugins.registry import registry


def distil(
    small: Any,
    original: Any,
    batches: Any,
    *,
    inputs: Any = None,
    loss: Loss | None = None,
    steps: int = STEPS,
    seconds: float | None = None,
    seed: int = 0,
    adapter: Adapter | None = None,
) -> Any:
    """Train a compressed model towards the original's outputs, on unlabelled examples.

    All parameters are trained by Adam, in eval mode, at rates in proportion to the size of each
    tensor (Shazeer and Stern, 1804.04235), so that factors of any scale move alike. The examples
    are shifted, where they are images, and mixed (`rankfold.calibration.perturbations`). A quarter
    of them is held out: it says when to stop, which parameters to keep, and whether the result is
    better than what was given.

    Args:
        small: what `rankfold.compress` returned, or a compressed model. It is not modified: Ctrl-C
            and errors leave it, and the original, as they were.
        original: the model that it was compressed from, or any that gives outputs of the same
            shapes; it is not modified.
        batches: what `calibration=` takes: batches of inputs, or of inputs and more.
        inputs: example inputs, which tell how many items of a batch the inputs are; None for all.
        loss: "outputs" (their squared distance; the default), "cross_entropy" (the KL divergence
            of the predictions; they are logits), or a function of (outputs, batch): training is
            then by the distance of the outputs, and the function judges it on the held-out batches.
        steps: of training, at most.
        seconds: after which no further step begins; the rate then falls with the time. Without it
            the result is the same for the same seed on the same machine.
        seed: draws and perturbs the examples.
        adapter: a fresh one, in place of the one that the installed plugins have for the models.

    Returns:
        For a `Compressed` a new one, with the loss and a note in its plan; else a model. Where
        training gained nothing on the held-out examples, the model is the very one that was given.

    Raises:
        RankfoldError: there are fewer than 4 examples, the loss or the steps are none, the models
            are of different frameworks, one fails on a batch, or the adapter trains no models.

    Example:
        >>> model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> batches = torch.randn(64, 24).split(16)  # four of (16, 24)
        >>> small = rf.compress(model, rf.Budget(params=0.5), calibration=batches)
        >>> better = rf.distil(small, model, batches, steps=60)
        >>> better.plan.loss[1] < small.plan.loss[1]
        True
        >>> better.plan.params == small.plan.params
        True
    """
    check_steps("distil", steps)
    check_seed(seed)
    if seconds is not None and not (isinstance(seconds, Real) and 0 < seconds < math.inf):
        raise RankfoldError(f"distil: seconds {seconds!r}; use a number above 0, None for no limit")
    model = small.model if isinstance(small, Compressed) else small
    can = capabilities(adapter or registry().adapter(original))
    examples = can.calibration(batches, inputs, loss)
    if adapter is None:
        _check_same_framework(can, model)
    outcome = _distilled(model, original, can, examples, steps, seconds or math.inf, seed)
    if not isinstance(small, Compressed):
        return outcome.model
    return Compressed(outcome.model, distilled_plan(small.plan, examples, outcome))


@exclusive("small", "original")
def _distilled(
    small: Any,
    original: Any,
    can: Capabilities,
    batches: Calibration,
    steps: int,
    seconds: float,
    seed: int,
) -> Distilled:
    return distilled(can, small, original, batches, steps=steps, seconds=seconds, seed=seed)


def _check_same_framework(can: Capabilities, small: Any) -> None:
    other = type(registry().adapter(small)).__name__
    if other != can.name:
        raise RankfoldError(
            f"distil: {other} is for the compressed model and {can.name} for the original; "
            "give two models of one framework"
        )
