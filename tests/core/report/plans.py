"""Plans for tests of the report: of any number of layers, made without a model."""

from __future__ import annotations

import msgspec
import numpy as np

import rankfold as rf
from rankfold.layers.spectrum_record import SpectrumRecord
from rankfold.plan.plan import Trial
from rankfold.plan.tradeoff import Tradeoff

EVIL = (
    "a\"'><img src=x onerror=alert(1)></script><script>alert(2)</script>{{ 7 * 7 }}\x1b[31m\u202e"
)
"""A layer's name that is markup wherever it is not written as text."""


def record(
    unfolding: str, sides: tuple[int, int], seed: int, kept: int | None = None
) -> SpectrumRecord:
    """Record the spectrum of a random matrix of those sides, steep and then flat."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-np.arange(min(sides)) / (3 + seed % 7)) + 0.03
    spectrum = SpectrumRecord.of(
        unfolding, sides, (decay * rng.uniform(0.9, 1.0, len(decay)))[None]
    )
    assert spectrum is not None
    return msgspec.structs.replace(spectrum, kept=kept)


def layer(index: int, path: str | None = None, *, informed: bool = True) -> rf.LayerPlan:
    """Plan one layer; every fifth is left alone."""
    path = f"blocks.{index // 3}.layer{index % 3}" if path is None else path
    size = (index % 7 + 1) * 1024
    if index % 5 == 4:
        return rf.LayerPlan(
            path=path,
            reason="kept by the budget",
            op="Linear 64→48",
            params=(size, size),
            macs=(size * 9, size * 9),
            spectra=(record("weight", (48, 64), index),),
        )
    return rf.LayerPlan(
        path=path,
        method="tucker2",
        ranks=(9, 7),
        reason="",
        error=0.2 + 0.001 * (index % 50),
        params=(size, size // 3),
        macs=(size * 9, size * 3),
        op="Conv 64→48 3×3",
        predicted=0.02 + 0.001 * (index % 40) if informed else None,
        measured=0.03 + 0.001 * (index % 40) if informed else None,
        refit=informed,
        spectra=(record("output", (48, 576), index, 9), record("input", (64, 432), index + 1, 7)),
    )


def network(layers: int = 21, *, informed: bool = True, first: str | None = None) -> rf.Plan:
    """Plan a network with everything that the report shows."""
    planned = tuple(
        layer(index, first if index == 0 else None, informed=informed) for index in range(layers)
    )
    curve = tuple((1.0 - 0.02 * step, 1e-4 * step**2) for step in range(45))
    return rf.Plan(
        layers=planned,
        policy="Budget(macs=0.5)",
        size=sum((item.params or (0, 0))[0] for item in planned) + 999,
        loss=(0.31, 0.33) if informed else None,
        predicted_latency=0.61,
        latency=0.66,
        notes=("proven within 0.10% of the best on offer",),
        trials=(
            Trial(share=1.0, score=0.93, kept=True),
            Trial(share=0.2, score=0.71, kept=False),
            Trial(share=0.5, score=0.92, kept=True),
        ),
        tradeoff=Tradeoff(resource="macs", measure="loss", points=curve, plan=(0.5, 1e-4 * 25**2)),
        call="rf.compress(model, rf.Budget(macs=0.5), exclude='stem')",
    )


def sensitivities(plan: rf.Plan) -> rf.Sensitivities:
    """Score each layer of a plan alone, later ones lower."""
    scores = [
        rf.LayerScore(item.path, "svd", (7,), share, 0.01, 0.1, 0.93 - drop, drop)
        for index, item in enumerate(plan.layers)
        for share in (0.5, 0.2)
        for drop in [0.001 * (index + 1) / share]
    ]
    return rf.Sensitivities(tuple(scores), 0.93, "macs", {})
