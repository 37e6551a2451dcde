"""Synthesised notes of instruments, and synthesised speech and noises, at 16 kHz."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import fftconvolve, lfilter

RATE = 16000
FRAME = 1024
CHUNK, CONTEXT = 512, 64
_NOTE = 6000  # samples: a frame out of the middle, with what of the reverberation precedes it
_LOWEST, _HIGHEST = 55.0, 1200.0  # Hz, well within the pitches that CREPE tells

Array = np.ndarray


@dataclass(frozen=True)
class Instrument:
    """A harmonic timbre.

    Attributes:
        weight: amplitudes of harmonics by their numbers and frequencies in Hz.
        decay: of the fundamental, per second; the n-th harmonic decays sqrt(n) times as fast.
        breath: noise, as a share of the tone.
    """

    weight: Callable[[Array, Array], Array]
    decay: float = 0.0
    breath: float = 0.0


def _formants(frequency: Array, *peaks: tuple[float, float]) -> Array:
    """Resonances at (Hz, bandwidth), above a floor."""
    return 0.05 + sum(1.0 / (1.0 + ((frequency - at) / width) ** 2) for at, width in peaks)


CALIBRATION = (
    Instrument(lambda n, f: n**-2.5, breath=0.05),  # flute
    Instrument(lambda n, f: np.where(n % 2 == 1, 1.0, 0.12) / n),  # clarinet
    Instrument(lambda n, f: _formants(f, (500, 300), (2800, 900)) / n),  # violin
    Instrument(lambda n, f: _formants(f, (1200, 700)) / np.sqrt(n)),  # trumpet
)
TEST = (
    Instrument(lambda n, f: _formants(f, (1100, 350), (2900, 600)) / n),  # oboe
    Instrument(lambda n, f: _formants(f, (700, 120), (1200, 150), (2600, 250)) / n, breath=0.02),
    Instrument(lambda n, f: np.abs(np.sin(0.21 * np.pi * n)) / n, decay=4.0),  # guitar
    Instrument(lambda n, f: n**-0.5),  # reed organ
)


def tone(instrument: Instrument, frequency: Array, phase: Array) -> Array:
    """A tone of a frequency in Hz at each sample; `phase` of each harmonic, as many as it has."""
    count = int(0.95 * RATE / 2 / frequency.max())
    angle = 2 * np.pi * np.cumsum(frequency) / RATE
    time = np.arange(len(frequency)) / RATE
    sound = np.zeros(len(frequency))
    number = np.arange(1, min(count, len(phase)) + 1)
    weights = instrument.weight(number, number * frequency.mean())
    for n, weight, start in zip(number, weights, phase, strict=False):
        fading = np.exp(-instrument.decay * np.sqrt(n) * time)
        sound += weight * fading * np.sin(n * angle + start)
    return sound / np.sqrt(np.mean(sound**2))


def note(instrument: Instrument, rng: np.random.Generator) -> tuple[Array, float]:
    """A frame of a note with vibrato, breath, reverberation and noise, and its pitch in Hz."""
    pitch = _LOWEST * (_HIGHEST / _LOWEST) ** rng.uniform()
    time = np.arange(_NOTE) / RATE
    depth, speed = rng.uniform(0, 25), rng.uniform(4, 7)  # cents, Hz
    swing = depth * np.sin(2 * np.pi * (speed * time + rng.uniform()))
    frequency = pitch * 2 ** (swing / 1200)
    sound = tone(instrument, frequency, rng.uniform(0, 2 * np.pi, 60))
    sound = sound + instrument.breath * rng.standard_normal(_NOTE)
    sound = reverberated(sound, rng)
    start = _NOTE - FRAME - rng.integers(500)
    frame = sound[start : start + FRAME]
    frame = frame / frame.std()
    frame = frame + 10 ** (-rng.uniform(10, 40) / 20) * rng.standard_normal(FRAME)
    frame = frame - frame.mean()
    return frame / frame.std(), float(frequency[start + FRAME // 2])


def notes(
    instruments: tuple[Instrument, ...], count: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (count, 1024) of the instruments in turns, and their pitches in Hz."""
    rng = np.random.default_rng(seed)
    drawn = [note(instruments[number % len(instruments)], rng) for number in range(count)]
    frames = torch.from_numpy(np.stack([frame for frame, _ in drawn]).astype(np.float32))
    return frames, torch.tensor([pitch for _, pitch in drawn])


def reverberated(sound: Array, rng: np.random.Generator) -> Array:
    """The sound with up to an equal share of exponentially decaying echoes of it."""
    time = np.arange(4000) / RATE
    echoes = rng.standard_normal(4000) * np.exp(-time / rng.uniform(0.02, 0.1))
    echoes *= rng.uniform(0, 0.7) / np.linalg.norm(echoes)
    return sound + fftconvolve(sound, echoes)[: len(sound)]


def speech(voice: tuple[float, float], chunks: int, rng: np.random.Generator) -> Array:
    """Syllables of a voice: pulses through three formants, with pauses and fricatives.

    Args:
        voice: its pitch in Hz, and its formants as a multiple of a man's.
        chunks: how many chunks of 512 samples.
        rng: draws vowels, stress and pauses.
    """
    length = chunks * CHUNK + CONTEXT
    parts: list[Array] = []
    pitch, size = voice
    while sum(map(len, parts)) < length:
        samples = int(RATE * rng.uniform(0.12, 0.3))
        time = np.linspace(0, 1, samples)
        contour = pitch * rng.uniform(0.85, 1.25) * (1 + rng.uniform(-0.2, 0.2) * time)
        cycles = np.cumsum(contour) / RATE
        pulses = np.diff(np.floor(cycles), prepend=0.0) + 0.01 * rng.standard_normal(samples)
        vowel = _VOWELS[rng.integers(len(_VOWELS))]
        for formant, width in zip(vowel, (80, 100, 140), strict=True):
            pulses = _resonance(pulses, size * formant, width)
        voiced = pulses / pulses.std() * np.sin(np.pi * time) ** 0.5
        hiss = lfilter([1, -0.9], [1], rng.standard_normal(int(RATE * rng.uniform(0.02, 0.1))))
        parts += [0.15 * hiss * np.hanning(len(hiss)), voiced]
        if rng.uniform() < 0.3:
            parts.append(np.zeros(int(RATE * rng.uniform(0.1, 0.4))))
    return np.concatenate(parts)[:length]


_VOWELS = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
)


def _resonance(sound: Array, frequency: float, width: float) -> Array:
    radius = np.exp(-np.pi * width / RATE)
    turn = 2 * radius * np.cos(2 * np.pi * frequency / RATE)
    return lfilter([1.0], [1.0, -turn, radius**2], sound)


def noise(colour: float, length: int, rng: np.random.Generator) -> Array:
    """Noise whose power falls as 1 / frequency**colour, of unit mean square."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (colour / 2)
    spectrum[0] = 0
    sound = np.fft.irfft(spectrum, length)
    return sound / sound.std()


MEN, WOMEN = ((110.0, 1.0), (135.0, 1.05)), ((210.0, 1.17), (240.0, 1.2))


def recordings(
    voices: tuple[tuple[float, float], ...],
    colours: tuple[float, ...],
    instruments: tuple[Instrument, ...],
    shape: tuple[int, int],
    seed: int,
) -> torch.Tensor:
    """Recordings (count, chunks, 576): two thirds speech in noise, the others noise or notes."""
    rng = np.random.default_rng(seed)
    count, chunks = shape
    length = chunks * CHUNK + CONTEXT
    sounds = []
    for number in range(count):
        sound = 10 ** (-rng.uniform(5, 35) / 20) * noise(rng.choice(colours), length, rng)
        kind = number % 6
        if kind < 4:
            spoken = speech(voices[number % len(voices)], chunks, rng)
            sound = sound + reverberated(spoken, rng)
        elif kind == 4:
            instrument = instruments[number % len(instruments)]
            pitch = np.full(length, _LOWEST * (_HIGHEST / _LOWEST) ** rng.uniform())
            sound = sound + tone(instrument, pitch, rng.uniform(0, 2 * np.pi, 60))
        sounds.append(10 ** rng.uniform(-2, -0.7) * sound / max(1e-9, np.abs(sound).max()))
    waves = torch.from_numpy(np.stack(sounds).astype(np.float32))
    return waves.unfold(1, CHUNK + CONTEXT, CHUNK).contiguous()
