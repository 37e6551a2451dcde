"""The loop of distillation, on a student that is a number."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rankfold.pipeline import distillation
from rankfold.pipeline.distillation import _train


class Number:
    """A student whose parameter is a number and whose loss is a function of it."""

    def __init__(self, start: float, loss: Any, move: Any) -> None:
        self.value = self.noted = start
        self.loss, self.move = loss, move
        self.rates: list[float] = []
        self.restored = 0

    def step(self, inputs: Any, rate: float) -> None:
        self.rates.append(rate)
        self.value += self.move(self.value, rate)

    def held_out_loss(self) -> float:
        return self.loss(self.value)

    def keep(self) -> None:
        self.noted = self.value

    def restore(self) -> None:
        self.restored += 1
        self.value = self.noted

    def kept(self) -> float:
        return self.noted


def trained(student: Number, steps: int = 240, seconds: float = math.inf) -> int:
    return _train(student, lambda: None, steps, seconds, lambda item: None)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    student = Number(1.0, abs, lambda value, rate: -value * rate)
    assert trained(student) == 240
    highest = max(student.rates)
    assert 0.9 * distillation._RATE < highest <= distillation._RATE
    assert student.rates[0] < 0.1 * highest
    assert student.rates[-1] < 0.01 * highest
    assert student.kept() == student.value < 0.5


def test_a_student_that_gets_worse_goes_back_and_stops() -> None:
    student = Number(1.0, abs, lambda value, rate: rate)
    steps = trained(student)
    assert steps < 240
    assert student.kept() == 1.0
    assert student.restored > 1


def test_a_student_that_overshoots_goes_on_at_a_lower_rate() -> None:
    # A step leads as far from the minimum as it is long.
    student = Number(0.004, abs, lambda value, rate: rate - value)
    trained(student)
    assert student.restored == 1
    assert student.kept() < 0.004
    half = student.rates[120 + distillation._WARM_UP]
    assert half < 0.3 * student.rates[120 - 1]


def test_a_loss_that_is_no_number_is_left_behind() -> None:
    student = Number(1.0, lambda x: x if x > 0.5 else math.nan, lambda value, rate: -rate)
    trained(student)
    assert 0.5 < student.kept() < 1.0


def test_time_ends_training_and_lets_the_rate_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    student = Number(1.0, abs, lambda value, rate: -value * rate)
    # The clock reads one second more after each step.
    monkeypatch.setattr(distillation.time, "monotonic", lambda: float(len(student.rates)))
    assert trained(student, steps=1000, seconds=40.0) == 40
    assert student.rates[-1] < 0.05 * max(student.rates)
    assert student.kept() == student.value
