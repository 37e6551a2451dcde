"""What a plan keeps of a spectrum: values to a percent, exact ranks of energy, few bytes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from rankfold.layers.spectrum_record import SpectrumRecord, telling
from rankfold.pipeline.session import settings_of


def squares(count: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).exponential(size=(2, count)) ** 3)[:, ::-1]


def recorded(unfolding: str = "weight", sides: tuple[int, int] = (37, 50)) -> SpectrumRecord:
    record = SpectrumRecord.of(unfolding, sides, squares(min(sides)))
    assert record is not None
    return record


@pytest.mark.parametrize("count", [1, 2, 23, 24, 37, 400, 5000])
def test_values_are_kept_to_a_percent(count: int) -> None:
    values = squares(count)
    record = SpectrumRecord.of("weight", (count, count + 3), values)
    assert record is not None
    total = np.sqrt(values.sum(axis=0))
    exact = np.maximum(total[record.ranks - 1] / total[0], 1e-6)
    assert record.values == pytest.approx(exact, rel=0.006)
    assert (record.ranks[0], record.ranks[-1]) == (1, count)
    assert len(msgspec.json.encode(record)) < 400


def test_ranks_of_energy_are_exact() -> None:
    record = recorded()
    shares = np.cumsum(squares(37).sum(axis=0))
    shares = shares / shares[-1]
    for rank, share in zip(record.energy, (0.9, 0.99), strict=True):
        assert shares[rank - 1] >= share
        assert shares[rank - 2] < share


def test_small_spectra_are_kept_whole() -> None:
    assert recorded(sides=(24, 50)).ranks.tolist() == list(range(1, 25))


@pytest.mark.parametrize("rank", [7, 101, 333])
def test_where_structure_ends_is_between_two_points(rank: int) -> None:
    values = np.concatenate([np.linspace(9, 8, rank), np.linspace(1, 0.01, 500 - rank)])
    record = SpectrumRecord.of("weight", (500, 600), values[None])
    assert record is not None
    assert record.gap == rank
    assert {rank, rank + 1} <= set(record.ranks.tolist())


def test_a_weight_of_zeros_has_no_record() -> None:
    assert SpectrumRecord.of("weighted", (3, 4), np.zeros((1, 3))) is None


def test_zeros_behind_the_first_value_are_the_lowest_level() -> None:
    record = SpectrumRecord.of("weight", (3, 4), np.array([[1.0, 0.0, 0.0]]))
    assert record is not None
    assert record.values.tolist() == pytest.approx([1.0, 1e-6, 1e-6])


WRONG = {
    "no sides": {"sides": (0, 4)},
    "sides beyond memory": {"sides": (2**40, 2**40)},
    "words": {"levels": "0 a 3"},
    "other digits": {"levels": "0 ² 3"},
    "too few": {"levels": "0"},
    "no gap": {"gap": 0},
    "a gap beyond all": {"gap": 99},
    "energy beyond all": {"energy": (3, 99)},
    "EVBMF beyond all": {"evbmf": 99},
    "a rank of none": {"kept": 0},
    "another unfolding": {"unfolding": "diagonal"},
}


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG)
def test_what_no_spectrum_is_has_a_reason(fields: dict[str, object]) -> None:
    assert not recorded().why_not
    assert msgspec.structs.replace(recorded(), **fields).why_not


@pytest.mark.parametrize(
    ("method", "unfolding", "rank"),
    [
        ("svd", "weight", 9),
        ("svd_id", "weight", 9),
        ("tucker2", "output", 9),
        ("tucker2", "input", 5),
        ("tucker2_id", "input", 5),
        ("tucker2", "spatial", None),
        ("channel_svd", "weighted", 9),
        ("spatial_svd", "spatial", 9),
        ("cp", "input", 9),
    ],
)
def test_a_method_ranks_its_own_unfoldings(method: str, unfolding: str, rank: int | None) -> None:
    chosen = (9, 5) if method.startswith("tucker2") else (9,)
    places = settings_of((method,), "balanced", 0).methods[method].ranks_of_unfoldings
    (record,) = telling([recorded(unfolding)], places, chosen)
    assert record.kept == rank


def test_records_that_tell_nothing_of_a_choice_are_left_out() -> None:
    records = [recorded("spatial"), recorded("input"), recorded("output")]
    kept = telling(records, {"output": 0, "input": 1}, (9, 5))
    assert [(record.unfolding, record.kept) for record in kept] == [("output", 9), ("input", 5)]
    every = telling([*kept, recorded("spatial")], {}, ())
    assert [record.unfolding for record in every] == ["output", "input", "spatial"]
    assert {record.kept for record in every} == {None}
