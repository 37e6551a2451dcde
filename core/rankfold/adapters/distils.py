"""The protocols of distillation: a compressed model is trained towards the original's outputs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rankfold.calibration.batches import Calibration

SMALLEST_SIZE = 1e-3
"""Size of a tensor below which it does not move more slowly, or zeros would stay zeros (Shazeer and
Stern, 1804.04235, algorithm 5)."""
LARGEST_GRADIENT = 1.0
"""Norm that longer gradients of a step are scaled to: at the first, high rates single batches would
else lead a network with normalisations away (0.022 in place of 0.012 of a residual one's loss)."""


class Student(Protocol):
    """A compressed model in training towards the original's outputs."""

    def step(self, inputs: Any, rate: float) -> None:
        """Take one step of Adam on the loss between the outputs of both models.

        The gradient of all parameters is no longer than `LARGEST_GRADIENT`.

        Args:
            inputs: of a batch, as in `Calibration.inputs`.
            rate: by how much a parameter moves at most, about, as a share of the size (the root of
                the mean square) that its tensor had at first, or of `SMALLEST_SIZE`.

        Raises:
            RankfoldError: a model fails on the inputs.
        """

    def held_out_loss(self) -> float:
        """Return the loss on the held-out examples, as `Calibrates.divergence` gives it second."""

    def keep(self) -> None:
        """Note the parameters as they are now."""

    def restore(self) -> None:
        """Go back to the parameters that were noted last, and forget the steps taken."""

    def kept(self) -> Any:
        """Return a copy of the compressed model with the parameters that were noted last."""


@runtime_checkable
class Distils(Protocol):
    """Optional: compressed models can be trained towards the original's outputs.

    Attributes:
        image_axes: the axes of height and width of an array of images, which has four.
    """

    image_axes: tuple[int, int]

    def student(
        self, model: Any, small: Any, held_out: Calibration
    ) -> AbstractContextManager[Student]:
        """Train a copy of a compressed model within the context; neither model is changed.

        Both run in eval mode: statistics of normalisations stay as they are. All floating-point
        parameters are trained, in float32 at least, whatever their dtype and flags are. The loss
        of a step is for "cross_entropy" the mean KL divergence of the predictions, else the
        squared distance of the outputs over the squared norm of the original's.

        Args:
            model: the original.
            small: its compressed form.
            held_out: examples for `Student.held_out_loss`, and the loss.

        Raises:
            RankfoldError: the compressed model cannot be copied or has nothing to train, or a
                model fails on the held-out examples.
        """
