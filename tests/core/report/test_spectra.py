"""Spectra as the page shows them: marks at the right ranks, and EVBMF from a few values."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from tests.core.report.plans import record

from rankfold.decompose.evbmf import from_squares
from rankfold.layers.spectrum_record import SpectrumRecord
from rankfold.report.spectra import about_evbmf, spectra_of


@pytest.mark.parametrize("rank", [0, 5, 40])
@pytest.mark.parametrize("sides", [(40, 96), (64, 288), (260, 330), (512, 700)])
def test_evbmf_of_the_record_is_about_that_of_all_values(sides: tuple[int, int], rank: int) -> None:
    rng = np.random.default_rng(rank)
    rank = min(rank, sides[0] // 4)
    structure = rng.standard_normal((sides[0], rank)) @ rng.standard_normal((rank, sides[1]))
    squares = np.linalg.svd(structure + rng.standard_normal(sides), compute_uv=False) ** 2
    kept = SpectrumRecord.of("weight", sides, squares[None])
    assert kept is not None
    exact = from_squares(squares, sides).rank
    assert about_evbmf(kept.sides, kept.levels, kept.gap) == pytest.approx(exact, abs=1, rel=0.05)


def test_marks_are_the_chosen_rank_evbmf_and_energy() -> None:
    kept = msgspec.structs.replace(record("output", (48, 576), 3, 9), evbmf=11)
    (shown,) = spectra_of([kept], (9, 7))
    assert [(mark.rank, mark.kind) for mark in shown.marks] == [
        (9, "chosen"),
        (11, "evbmf"),
        (kept.energy[0], "energy"),
        (kept.energy[1], "energy"),
    ]
    assert "Kept: 9," in shown.words
    assert "EVBMF: 11." in shown.words
    assert (shown.ranks == kept.ranks).all()
    assert (shown.values == kept.values).all()


def test_what_the_record_lacks_is_marked_as_estimated() -> None:
    kept = record("output", (48, 576), 3)
    (shown,) = spectra_of([kept], ())
    about = about_evbmf(kept.sides, kept.levels, kept.gap)
    assert f"EVBMF ≈ {about}" in [mark.text for mark in shown.marks]
    assert "chosen" not in [mark.kind for mark in shown.marks]


def test_the_rank_of_a_plan_that_was_changed_since_is_not_marked() -> None:
    (shown,) = spectra_of([record("output", (48, 576), 3, 9)], (8, 7))
    assert "chosen" not in [mark.kind for mark in shown.marks]


def test_a_weighted_norm_has_no_evbmf() -> None:
    (shown,) = spectra_of([record("weighted", (48, 64), 3, 9)], (9,))
    assert [mark.kind for mark in shown.marks] == ["chosen", "energy", "energy"]
