"""`Gradual`: a model that is compressed in place, in several steps, while it is trained.

Each step undoes the one before with the weights as they are by then, and compresses the dense model
to less: chains that are decomposed once more one by one lose far more than the layers they stand
for. So all policies refer to the original model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any

from rankfold.adapters.capabilities import Capabilities, capabilities
from rankfold.errors import RankfoldError
from rankfold.pipeline.api import compress
from rankfold.pipeline.result import Compressed
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy

_OPTIONS = inspect.signature(compress).parameters.keys() - {"model", "policy", "inplace", "adapter"}


class Gradual:
    """A schedule by which a model in training is compressed in place.

    A copy of the original model is kept until the last step is done.

    Args:
        schedule: policies, objects or texts, by the number of the training step (or epoch) from
            which they hold; each refers to the original model.
        options: what `rankfold.compress` takes besides: inputs, calibration, methods, ... Of an
            iterator, as a generator of batches, a list is kept for all steps.

    Attributes:
        compressed: the model with its plan, to be saved; None before the first step is due.

    Raises:
        RankfoldError: the schedule is empty, a step is no whole number of at least 0, a policy is
            none, or `compress` has no such option.

    Example:
        >>> model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> schedule = {0: "budget:macs=0.7", 5: "budget:macs=0.4"}
        >>> gradual = rf.Gradual(schedule, inputs=torch.ones(1, 24))
        >>> for number in range(10):
        ...     changed = gradual.step(model, number, [optimizer])
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 24)).square().mean().backward()
        ...     optimizer.step()
        >>> before, after = gradual.compressed.plan.macs
        >>> after <= 0.4 * before
        True
    """

    def __init__(self, schedule: Mapping[int, Policy | str], **options: Any) -> None:
        if not isinstance(schedule, Mapping) or not schedule:
            raise RankfoldError(
                f"schedule: {schedule!r}; give a mapping from training steps to policies, "
                '{0: "budget:macs=0.5", 1000: "budget:macs=0.25"}'
            )
        for number in schedule:
            if not isinstance(number, Integral) or isinstance(number, bool) or number < 0:
                raise RankfoldError(f"schedule: step {number!r}; use a whole number, at least 0")
        for name in options:
            if name not in _OPTIONS:
                raise RankfoldError(
                    f"Gradual: no option {name!r}; use those of compress: "
                    f"{', '.join(sorted(_OPTIONS))}"
                )
        # An iterator would be at its end where the second step is due.
        options = {
            name: list(value) if isinstance(value, Iterator) else value
            for name, value in options.items()
        }
        # Whatever can be told of them now is not left for the middle of a training run.
        selectors = (options.get("include"), options.get("exclude", ()), options.get("overrides"))
        for policy in schedule.values():
            registry().selection(policy, *selectors)
        self.compressed: Compressed | None = None
        self._schedule = {int(number): schedule[number] for number in sorted(schedule)}
        self._options = options
        self._original: Any = None
        self._last: int | None = None

    def step(self, model: Any, number: float, optimizers: Any = ()) -> bool:
        """Compress the model if a step of the schedule is due.

        Of several that are due the last one is carried out. Optimizers that are given go on: each
        has the new parameters in the groups of those that they replace, with no state yet, and the
        state of all others.

        Args:
            model: the model, always the same one; it is changed in place. Not a wrapper of
                `DistributedDataParallel` or alike, which holds the parameters besides.
            number: of the training step (or epoch) that comes next.
            optimizers: of the model, one or an iterable of them, where the framework's adapter can
                change them.

        Returns:
            Whether the model was changed; whatever else holds parameters of it (an optimizer that
            was not given, an average of weights) is then to be made anew.

        Raises:
            RankfoldError: as `compress`, `number` is no number, the model is another one than
                before, or its framework cannot change models or optimizers in place. Where
                `compress` fails the model is dense, with the weights that it had.
        """
        _check_number(number)
        due = max((n for n in self._schedule if n <= number), default=None)
        if due is None or due == self._last:
            return False
        can = self._checked(model)
        several = isinstance(optimizers, Iterable)
        with self._following(can, model, list(optimizers) if several else [optimizers]):
            if self._original is None:
                self._original = can.builder.replace(model, {}, inplace=False)
            if self.compressed is not None:
                inputs = self._options.get("inputs")
                self.compressed.expanded(self._original, inputs=inputs, inplace=True)
                self.compressed = None
            policy = self._schedule[due]
            self.compressed = compress(model, policy, inplace=True, **self._options)
        self._last = due
        if due == max(self._schedule):
            self._original = None
        return True

    def _checked(self, model: Any) -> Capabilities:
        if self.compressed is not None and self.compressed.model is not model:
            raise RankfoldError(
                f"Gradual: another {type(model).__name__} than at step {self._last}; make a "
                "Gradual for each model"
            )
        if self._last is not None and self._original is None:
            raise RankfoldError("Gradual: its last step is done; make another one to go back or on")
        can = capabilities(registry().adapter(model))
        if can.expands_in_place is None:
            raise RankfoldError(
                f"Gradual: {can.name} cannot change models in place; compress, train, and compress "
                "what Compressed.expanded gives"
            )
        return can

    @staticmethod
    def _following(
        can: Capabilities, model: Any, optimizers: list[Any]
    ) -> AbstractContextManager[None]:
        if not optimizers:
            return nullcontext()
        if can.follows_parameters is None:
            raise RankfoldError(
                f"Gradual: {can.name} does not change optimizers; make them anew where step() "
                "returns True"
            )
        return can.follows_parameters.following(model, optimizers)


def _check_number(number: Any) -> None:
    """Refuse what is neither a number nor a scalar array of one."""
    try:
        # Texts have numbers, too, but do not compare with them.
        wrong = isinstance(number, (str, bytes)) or math.isnan(float(number))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        wrong = True
    if wrong:
        raise RankfoldError(
            f"step {number!r}; give the number of the training step or epoch, as step(model, 100)"
        )
