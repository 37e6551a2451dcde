"""Pictures of text, drawn with fonts of matplotlib: lines and pages."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np

Array = np.ndarray

CALIBRATION_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
)
TEST_FONTS = ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf", "cmss10.ttf")
LINE_HEIGHT = 48
_LETTERS = list(string.ascii_letters + string.digits)


def words(rng: np.random.Generator, longest: int = 11) -> str:
    """Letters and digits without a meaning that a network could guess them by."""
    return "".join(rng.choice(_LETTERS, rng.integers(4, longest)))


def lines(
    fonts: tuple[str, ...], count: int, width: int, rng: np.random.Generator
) -> tuple[Array, list[str]]:
    """Lines of text (count, 3, 48, width) from -1 to 1, and what they say."""
    texts = [words(rng) for _ in range(count)]
    return np.stack([_line(text, fonts, width, rng) for text in texts]), texts


def pages(fonts: tuple[str, ...], count: int, size: int, rng: np.random.Generator) -> Array:
    """Pages with some lines of text at random places (count, 3, size, size) from 0 to 255."""
    return np.stack([_page(fonts, size, rng) for _ in range(count)])


def _line(text: str, fonts: tuple[str, ...], width: int, rng: np.random.Generator) -> Array:
    from PIL import Image, ImageDraw

    ink, ground = _tones(rng)
    image = Image.new("RGB", (width, LINE_HEIGHT), (ground,) * 3)
    font = _font(fonts[rng.integers(len(fonts))], int(rng.integers(28, 38)))
    corner = (int(rng.integers(4, 12)), int(rng.integers(0, 8)))
    ImageDraw.Draw(image).text(corner, text, font=font, fill=(ink,) * 3)
    return _grainy(np.asarray(image, np.float32), rng) / 127.5 - 1


def _page(fonts: tuple[str, ...], size: int, rng: np.random.Generator) -> Array:
    from PIL import Image, ImageDraw

    ink, ground = _tones(rng)
    image = Image.new("RGB", (size, size), (ground,) * 3)
    draw = ImageDraw.Draw(image)
    top = int(rng.integers(5, 30))
    while top < size - 40:
        height = int(rng.integers(14, 34))
        font = _font(fonts[rng.integers(len(fonts))], height)
        text = " ".join(words(rng, 9) for _ in range(rng.integers(1, 3)))
        draw.text((int(rng.integers(4, size // 3)), top), text, font=font, fill=(ink,) * 3)
        top += height + int(rng.integers(8, 60))
    return _grainy(np.asarray(image, np.float32), rng)


def _font(name: str, size: int) -> object:
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / name), size)


def _tones(rng: np.random.Generator) -> tuple[int, int]:
    """Ink and ground, dark on light or light on dark."""
    tones = int(rng.integers(0, 90)), int(rng.integers(170, 256))
    return tones if rng.random() < 0.7 else tones[::-1]


def _grainy(image: Array, rng: np.random.Generator) -> Array:
    noisy = image + rng.normal(0, 6, image.shape).astype(np.float32)
    return np.clip(noisy, 0, 255).transpose(2, 0, 1)
