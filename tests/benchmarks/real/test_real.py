"""The parts of the benchmark on real networks that need none of its packages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.benchmarks.real import peers, pictures, sounds, subjects
from tests.benchmarks.real.results import ORIGINAL, Row, add, page, read
from tests.benchmarks.real.ways import BALF, EVBMF, WAYS, Task
from torch import nn

import rankfold as rf

SHARES = (0.8, 0.3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, (3, 2), padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.Conv2d(12, 16, 3, stride=2, dilation=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    ).eval()


INPUTS = (3, 11, 12)


def task() -> Task:
    x = torch.randn(64, *INPUTS, generator=torch.Generator().manual_seed(1))
    return Task(network(), x[:1], x.split(16))


def test_projections_are_exact_at_full_rank() -> None:
    job = task()
    statistics = job.statistics
    for path, layer in peers.layers(job.model).items():
        for gram in (
            statistics[path].outputs,
            peers.scaled_gram(layer, statistics[path].magnitudes),
        ):
            _, basis = np.linalg.eigh(gram)
            sides = () if isinstance(layer, nn.Linear) else (9, 10)
            x = torch.randn(2, layer.weight.shape[1], *sides)
            with torch.no_grad():
                torch.testing.assert_close(
                    peers.factorised(layer, basis)(x), layer(x), rtol=1e-4, atol=1e-5
                )


def test_projection_of_outputs_is_the_whitened_svd() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 7)) @ rng.standard_normal((7, 7))
    layer = nn.Linear(7, 5, bias=False)
    weight = layer.weight.detach().double().numpy()
    square = np.linalg.cholesky(x.T @ x / len(x))
    left, values, right = np.linalg.svd(weight @ square)
    whitened = left[:, :3] * values[:3] @ right[:3] @ np.linalg.inv(square)
    _, basis = np.linalg.eigh(weight @ x.T @ x @ weight.T / len(x))
    basis = basis[:, ::-1][:, :3]
    np.testing.assert_allclose(basis @ basis.T @ weight, whitened, atol=1e-9)


def test_statistics_are_moments_of_the_outputs_without_bias() -> None:
    job = task()
    x = torch.cat(tuple(job.batches))
    layer = job.model[0]
    with torch.no_grad():
        y = (layer(x) - layer.bias[:, None, None]).movedim(1, -1).flatten(0, -2).double().numpy()
    statistics = job.statistics["0"]
    np.testing.assert_allclose(statistics.outputs, y.T @ y / len(y), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics.magnitudes, x.abs().mean((0, 2, 3)), rtol=1e-4)
    assert statistics.positions == len(y) / len(x)


@pytest.mark.parametrize("way", [way for way in WAYS if way != EVBMF])
@pytest.mark.parametrize("share", SHARES)
def test_no_way_exceeds_the_budget(way: str, share: float) -> None:
    job = task()
    before = peers.multiply_accumulates(job.model, job.x)
    small = WAYS[way](job, share)
    assert peers.multiply_accumulates(small, job.x) <= share * before * (1 + 1e-9)
    with torch.no_grad():
        assert small(job.x).shape == job.model(job.x).shape


def test_costs_that_are_predicted_are_those_of_the_network() -> None:
    job = task()
    total = peers.multiply_accumulates(job.model, job.x)
    costs = peers.costs_of(job.model, job.statistics, total)
    assert costs.original == total
    ranks = peers.uniform(costs, 0.5)
    small = peers.compressed(
        job.model, costs, {path: s.outputs for path, s in job.statistics.items()}, ranks
    )
    assert peers.multiply_accumulates(small, job.x) == costs.total(ranks)


def test_a_recurrent_cell_costs_what_rankfold_counts() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.cell = nn.Linear(24, 16), nn.LSTMCell(16, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cell(self.first(x))[0]

    model, x = Network(), torch.ones(1, 24)
    macs = rf.plan(model, rf.Ranks(2), inputs=x).macs
    assert macs is not None
    assert peers.multiply_accumulates(model, x) == macs[0] == 24 * 16 + 4 * 20 * (16 + 20)


def test_most_energy_is_kept_within_a_budget() -> None:
    costs = peers.Costs({"a": (8, 20), "b": (8, 20)}, {"a": 3, "b": 3}, 0.0)
    steep, flat = 0.1 ** np.arange(8.0), np.ones(8)
    ranks = peers.most_energy(costs, {"a": steep, "b": flat}, 0.6)
    assert costs.total(ranks) <= 0.6 * costs.original
    assert ranks["a"] < ranks["b"]


def test_an_impossible_budget_is_said() -> None:
    costs = peers.Costs({"a": (8, 20), "b": (8, 20)}, {"a": 3, "b": 3}, 1e6)
    with pytest.raises(peers.InfeasibleError):
        peers.uniform(costs, 0.5)
    with pytest.raises(peers.InfeasibleError):
        peers.most_energy(costs, {"a": np.ones(8), "b": np.ones(8)}, 0.5)


@pytest.mark.parametrize("instrument", sounds.CALIBRATION + sounds.TEST)
@pytest.mark.parametrize("pitch", [110.0, 523.0])
def test_notes_have_the_pitch_they_claim(instrument: sounds.Instrument, pitch: float) -> None:
    rng = np.random.default_rng(0)
    frequency = np.full(sounds.RATE, pitch)
    sound = sounds.tone(instrument, frequency, rng.uniform(0, 6, 20)) * np.hanning(sounds.RATE)
    power = np.abs(np.fft.rfft(sound)) ** 2  # at whole frequencies in Hz
    nearest = np.round(np.arange(len(power)) / pitch) * pitch
    harmonic = (np.abs(np.arange(len(power)) - nearest) <= 8) & (nearest > 0)
    assert power[harmonic].sum() > 0.99 * power.sum()
    assert power[int(pitch) - 8 : int(pitch) + 9].sum() > 1e-3 * power.sum()


def test_vibrato_is_part_of_the_pitch_that_a_note_claims() -> None:
    frames, pitches = sounds.notes(sounds.TEST, 8, 3)
    again, _ = sounds.notes(sounds.TEST, 8, 3)
    assert frames.shape == (8, sounds.FRAME)
    torch.testing.assert_close(frames, again)
    torch.testing.assert_close(frames.mean(1), torch.zeros(8), atol=1e-5, rtol=0)
    assert float(pitches.min()) > 50
    assert float(pitches.max()) < 1300


def test_chunks_of_recordings_overlap_by_their_context() -> None:
    waves = sounds.recordings(sounds.MEN, (1.0,), sounds.CALIBRATION, (6, 4), 0)
    assert waves.shape == (6, 4, sounds.CHUNK + sounds.CONTEXT)
    assert torch.equal(waves[:, 1:, : sounds.CONTEXT], waves[:, :-1, -sounds.CONTEXT :])
    assert bool(waves.abs().amax((1, 2)).gt(0).all())


def test_a_pitch_is_read_between_the_bins() -> None:
    bins = torch.arange(360.0)
    outputs = torch.exp(-0.5 * (bins - torch.tensor([[100.3], [240.0]])) ** 2)
    expected = 1997.3794 + 20 * torch.tensor([100.3, 240.0])
    torch.testing.assert_close(subjects.cents(outputs), expected, atol=1.0, rtol=0)


def test_drawn_digits_are_ten_kinds_within_their_range() -> None:
    rng = np.random.default_rng(0)
    images, labels = pictures.glyphs(pictures.TEST_FONTS, 40, 20, 0.8, rng)
    assert images.shape == (40, 20, 20)
    assert np.bincount(labels).tolist() == [4] * 10
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.reshape(40, -1).max(1).min() > 0.5
    grounds = [rng.uniform(size=(30, 40, 3)).astype(np.float32)]
    shown = pictures.disturbed(pictures.coloured(images, grounds, rng), rng)
    assert shown.shape == (40, 3, 20, 20)
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_rows_are_read_as_they_were_added(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "rows.jsonl"
    first = Row("mnist", 0, ORIGINAL, "1", 1.0, {"accuracy, %": 90.0}, latency=1.0)
    stale = Row("mnist", 0, BALF, "0.5", 0.49, {"accuracy, %": 1.0}, 2.0, 0.7)
    last = Row("mnist", 0, BALF, "0.5", 0.49, {"accuracy, %": 80.0}, 2.0, 0.7)
    none = Row("mnist", 1, BALF, "0.15", None, {})
    add(file, [first, stale])
    add(file, [last, none])
    assert read(file) == [first, last, none]
    text = page(read(file), "on a machine")
    assert "| 50% | BALF | 49.0% | 80.0 | 2.0 | 0.70 |" in text
    assert "| 15% | BALF | impossible |" in text
