"""Data that ships with what is installed: digits, glyphs of fonts, Python's own source text."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

GLYPHS = "ABCDEFGHKMNPRSTUWXYZ"
_SIZE = 16
_CONTEXT = 64
_FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono")


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs and targets to train on, and to test on; the first axis counts examples."""

    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]

    def calibration(self, examples: int, seed: int, batch: int = 64) -> list[torch.Tensor]:
        """Batches of training inputs."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.train[0]), generator=generator)[:examples]
        return list(self.train[0][chosen].split(batch))


def digits() -> Data:
    """scikit-learn's 1797 handwritten digits, (n, 1, 8, 8); every fourth one is for testing."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images[:, None] / 16.0).astype(np.float32))
    labels = torch.from_numpy(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    tested = len(labels) // 4
    train, test = order[tested:], order[:tested]
    return Data((images[train], labels[train]), (images[test], labels[test]))


def glyphs(train: int = 6000, test: int = 2000, noise: float = 0.3) -> Data:
    """Capital letters of matplotlib's DejaVu fonts, (n, 1, 16, 16), turned, moved and noisy."""
    rng = np.random.default_rng(0)
    stamps = [[_stamp(letter, *style) for style in _styles()] for letter in GLYPHS]
    count = train + test
    labels = rng.integers(len(GLYPHS), size=count)
    images = np.empty((count, 1, _SIZE, _SIZE), np.float32)
    for place, label in enumerate(labels):
        drawn = stamps[label][rng.integers(len(stamps[label]))]
        images[place, 0] = _bent(drawn, rng) + noise * rng.standard_normal((_SIZE, _SIZE))
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    return Data((x[:train], y[:train]), (x[train:], y[train:]))


def source_text(train: int = 8000, test: int = 500) -> Data:
    """Bytes of the Python standard library's modules, (n, 64); targets are the next bytes.

    Whole modules are held out for testing.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py"))
    texts = [np.frombuffer(file.read_bytes(), np.uint8) for file in files]
    parts = []
    for count, chosen in ((train, texts[::2]), (test, texts[1::2])):
        text = np.minimum(np.concatenate(chosen), 127).astype(np.int64)
        rng = np.random.default_rng(0)
        starts = rng.integers(len(text) - _CONTEXT - 1, size=count)
        windows = torch.from_numpy(text[starts[:, None] + np.arange(_CONTEXT + 1)])
        parts.append((windows[:, :-1], windows[:, 1:]))
    return Data(*parts)


def _styles() -> list[tuple[str, str, str]]:
    weights, slants = ("normal", "bold"), ("normal", "oblique")
    return [(f, w, s) for f in _FONTS for w in weights for s in slants]


def _stamp(letter: str, family: str, weight: str, slant: str) -> np.ndarray:
    """A letter, white on black, in the middle of 64×64 pixels."""
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    font = FT2Font(findfont(FontProperties(family=family, weight=weight, style=slant)))
    font.set_size(44, 72)
    font.set_text(letter)
    font.draw_glyphs_to_bitmap()
    drawn = np.asarray(font.get_image(), np.float32) / 255.0
    image = np.zeros((64, 64), np.float32)
    top, left = ((64 - size) // 2 for size in drawn.shape)
    image[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return image


def _bent(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned, stretched, moved, and brought to 16×16 pixels."""
    from scipy.ndimage import affine_transform

    angle = rng.uniform(-0.35, 0.35)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag(64 / _SIZE * rng.uniform(0.85, 1.25, 2))
    middle = 31.5 - matrix @ (np.full(2, (_SIZE - 1) / 2) + rng.uniform(-1.5, 1.5, 2))
    return affine_transform(image, matrix, middle, (_SIZE, _SIZE), order=1)
