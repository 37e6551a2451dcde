"""The scores of a model with one layer compressed at a time, as a table in many forms."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

from rankfold.console import some
from rankfold.plan.data_frame import data_frame
from rankfold.plan.table import Contents, as_text
from rankfold.report.notebook import folded_table


@dataclass(frozen=True)
class LayerScore:
    """The score of a model with one layer compressed.

    Attributes:
        path: of the layer.
        method: that replaced it.
        ranks: of the method.
        share: what is left of the layer's cost.
        saved: share of the cost of all layers that this saves.
        error: ‖y − ŷ‖ / ‖y‖ of its output as predicted, with calibration data; of its weight
            without.
        score: what `evaluate` gave.
        drop: the score of the original less this one.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(48, 64), nn.ReLU()), torch.randn(1, 48)
        >>> [score] = rf.sensitivity(model, evaluate=lambda m: 1.0, inputs=x, shares=(0.5,))
        >>> score.path, score.method, score.drop
        ('0', 'svd', 0.0)
    """

    path: str
    method: str
    ranks: tuple[int, ...]
    share: float
    saved: float
    error: float
    score: float
    drop: float


@dataclass(frozen=True, repr=False)
class Sensitivities(Sequence[LayerScore]):
    """The scores of a model with one layer compressed at a time, in the model's order.

    Attributes:
        scores: one for each layer and share.
        original: the score of the original.
        resource: "macs" or "params": what shares are of.
        left_out: by path of each layer that was not tried, or not at every share, why.

    Example:
        >>> model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        >>> x = torch.randn(1, 48)
        >>> scores = rf.sensitivity(model, evaluate=lambda m: -m(x).detach().norm(), inputs=x)
        >>> sorted(scores.most_sensitive()), scores.resource
        (['0', '2'], 'macs')
    """

    scores: tuple[LayerScore, ...]
    original: float
    resource: str
    left_out: Mapping[str, str]

    @overload
    def __getitem__(self, index: int) -> LayerScore: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerScore]: ...
    def __getitem__(self, index: int | slice) -> LayerScore | Sequence[LayerScore]:
        return self.scores[index]

    def __len__(self) -> int:
        return len(self.scores)

    def of(self, path: str) -> tuple[LayerScore, ...]:
        """Return the scores of one layer, from the most of its cost to the least."""
        return tuple(score for score in self.scores if score.path == path)

    def most_sensitive(self) -> list[str]:
        """Return the paths of the layers, from the largest drop at any share to the least."""
        drops: dict[str, float] = {}
        for score in self.scores:
            drops[score.path] = max(score.drop, drops.get(score.path, score.drop))
        return sorted(drops, key=lambda path: -drops[path])

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with a row for each score, and the fields as columns.

        Raises:
            RankfoldError: pandas is not installed.
        """
        names = [field.name for field in fields(LayerScore)]
        return data_frame([[getattr(s, n) for n in names] for s in self.scores], names)

    def to_csv(self) -> str:
        """Return a line of comma-separated values for each score, below one of names."""
        names = [field.name for field in fields(LayerScore)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        for score in self.scores:
            cells = [getattr(score, name) for name in names]
            writer.writerow([" ".join(map(str, c)) if isinstance(c, tuple) else c for c in cells])
        return text.getvalue()

    def __repr__(self) -> str:
        return f"Sensitivities({self._summary()})"

    def _repr_html_(self) -> str | None:
        table = self._contents()
        title = f"Sensitivities: {self._summary()}"
        return folded_table(title, table.columns, table.rows, (table.totals,))

    def __str__(self) -> str:
        return as_text(self._contents())

    def _summary(self) -> str:
        worst = self.most_sensitive()
        layers = f"{len(worst)} layers, original {self.original:.4g}"
        return f"{layers}, most sensitive {some(worst, 3)}" if worst else layers

    def _contents(self) -> Contents:
        columns = {"layer": False, "method": False, "ranks": True, "left": True, "saved": True}
        rows = [
            (
                score.path or "(the model)",
                score.method,
                ", ".join(map(str, score.ranks)),
                f"{score.share:.1%}",
                f"{score.saved:.1%}",
                f"{score.error:.4f}",
                f"{score.score:.4g}",
                f"{score.drop:.4g}",
            )
            for score in self.scores
        ]
        totals = f"{self._summary()}; shares are of {self.resource}"
        if self.left_out:
            reasons = [f"{path!r} ({reason})" for path, reason in self.left_out.items()]
            totals += f"; not tried: {some(reasons)}"
        columns |= dict.fromkeys(("error", "score", "drop"), True)
        return Contents("", columns, tuple(rows), totals)
