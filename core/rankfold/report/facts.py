"""Facts that a page is made from: a plan and its layers, as far as the report reads them.

Structural types, so that the report stands below the plan, which calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rankfold.layers.spectrum_record import SpectrumRecord


class LayerFacts(Protocol):
    """One layer of a plan; see `rankfold.LayerPlan`."""

    @property
    def path(self) -> str:
        """Path in the model."""

    @property
    def op(self) -> str:
        """Description of the layer's op."""

    @property
    def method(self) -> str | None:
        """Name of the decomposition; None where the layer is left alone."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of the method."""

    @property
    def reason(self) -> str:
        """Reason why it is left alone, or a remark."""

    @property
    def params(self) -> tuple[int, int] | None:
        """Parameters (before, after)."""

    @property
    def macs(self) -> tuple[int, int] | None:
        """Multiply-accumulates (before, after)."""

    @property
    def error(self) -> float | None:
        """Relative error of the weight."""

    @property
    def predicted(self) -> float | None:
        """Relative error of the output, predicted."""

    @property
    def measured(self) -> float | None:
        """Relative error of the output, measured."""

    @property
    def refit(self) -> bool:
        """Whether the weights were refitted."""

    @property
    def moments(self) -> str:
        """Form of the moments of its inputs."""

    @property
    def sensitivity(self) -> float | None:
        """Sensitivity of CP stages to noise."""

    @property
    def spectra(self) -> tuple[SpectrumRecord, ...]:
        """Records of its spectra."""


class TrialFacts(Protocol):
    """One model that a budget tried."""

    @property
    def share(self) -> float:
        """Share of the cost."""

    @property
    def score(self) -> float:
        """Score that `evaluate` gave."""

    @property
    def kept(self) -> bool:
        """Whether it is good enough."""


class TradeoffFacts(Protocol):
    """Cost against predicted loss; see `rankfold.plan.tradeoff.Tradeoff`."""

    @property
    def resource(self) -> str:
        """Resource that the shares are of."""

    @property
    def measure(self) -> str:
        """Measure of the losses: "error" or "loss"."""

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """The curve."""

    @property
    def plan(self) -> tuple[float, float]:
        """Share and loss of what was chosen."""


class ScoreFacts(Protocol):
    """The score of the model with one layer compressed; see `rankfold.LayerScore`."""

    @property
    def path(self) -> str:
        """Path of the layer."""

    @property
    def share(self) -> float:
        """Share of its cost that is left."""

    @property
    def score(self) -> float:
        """Score that `evaluate` gave."""


class SensitivityFacts(Protocol):
    """Scores of a model with one layer compressed at a time; see `rankfold.Sensitivities`."""

    @property
    def scores(self) -> Sequence[ScoreFacts]:
        """The scores, in the model's order."""

    @property
    def original(self) -> float:
        """The score of the original."""


class PlanFacts(Protocol):
    """A plan; see `rankfold.Plan`."""

    @property
    def layers(self) -> Sequence[LayerFacts]:
        """All layers, in the model's order."""

    @property
    def replaced(self) -> Sequence[LayerFacts]:
        """Layers that are decomposed."""

    @property
    def policy(self) -> str:
        """The policy that chose."""

    @property
    def call(self) -> str:
        """Arguments of the call that made it."""

    @property
    def command(self) -> str:
        """Command line that makes it again."""

    @property
    def params(self) -> tuple[int, int]:
        """Parameters (before, after) of the layers."""

    @property
    def model_params(self) -> tuple[int, int]:
        """Parameters (before, after) of the model."""

    @property
    def macs(self) -> tuple[int, int] | None:
        """Multiply-accumulates (before, after) of the layers."""

    @property
    def loss(self) -> tuple[float, float] | None:
        """Loss on held-out examples (before, after)."""

    @property
    def predicted_latency(self) -> float | None:
        """Time of a pass as a share of the original's, predicted."""

    @property
    def latency(self) -> float | None:
        """The same, measured."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes of the policies on the whole."""

    @property
    def trials(self) -> Sequence[TrialFacts]:
        """Models that were tried."""

    @property
    def tradeoff(self) -> TradeoffFacts | None:
        """Cost against loss as a budget saw it."""
