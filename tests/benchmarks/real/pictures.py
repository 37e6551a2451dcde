"""Crops of photographs, and digits: drawn, drawn on photographs, and of scikit-learn's writers."""

from __future__ import annotations

import importlib.util
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import affine_transform, gaussian_filter

Array = np.ndarray

_SKIMAGE, _SKLEARN, _MATPLOTLIB = "skimage/data", "sklearn", "matplotlib"
CALIBRATION = (
    (_SKIMAGE, "astronaut.png"),
    (_SKIMAGE, "motorcycle_left.png"),
    (_SKIMAGE, "coffee.png"),
    (_SKIMAGE, "grass.png"),
    (_SKIMAGE, "retina.jpg"),
    (_SKIMAGE, "camera.png"),
    (_SKLEARN, "datasets/images/china.jpg"),
)
TEST = (
    (_SKIMAGE, "chelsea.png"),
    (_SKIMAGE, "rocket.jpg"),
    (_SKIMAGE, "gravel.png"),
    (_SKIMAGE, "coins.png"),
    (_SKIMAGE, "ihc.png"),
    (_SKLEARN, "datasets/images/flower.jpg"),
    (_MATPLOTLIB, "mpl-data/sample_data/grace_hopper.jpg"),
)
_FONTS = "mpl-data/fonts/ttf"
_HEIGHT = 44  # of a drawn digit, in pixels
CALIBRATION_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
)
TEST_FONTS = ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf", "cmss10.ttf")


def photographs(folder: Path, names: tuple[tuple[str, str], ...]) -> list[Array]:
    """Photographs (height, width, 3) of values from 0 to 1."""
    from PIL import Image

    pictures = []
    for package, name in names:
        root = folder / package if package == _SKIMAGE else installed(package)
        with Image.open(root / name) as image:
            pictures.append(np.asarray(image.convert("RGB"), np.float32) / 255.0)
    return pictures


def installed(package: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def crops(pictures: list[Array], count: int, size: int, rng: np.random.Generator) -> Array:
    """Square crops (count, 3, size, size) of the pictures in turns, half of them mirrored."""
    return np.stack([_crop(p, size, rng) for p, _ in zip(cycle(pictures), range(count))])


def _crop(picture: Array, size: int, rng: np.random.Generator) -> Array:
    from PIL import Image

    height, width = picture.shape[:2]
    side = int(min(height, width) * rng.uniform(0.35, 1.0))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    part = np.uint8(255 * picture[top : top + side, left : left + side])
    scaled = np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC))
    if rng.uniform() < 0.5:
        scaled = scaled[:, ::-1]
    return scaled.transpose(2, 0, 1).astype(np.float32) / 255.0


def disturbed(images: Array, rng: np.random.Generator) -> Array:
    """Images (n, 3, h, w) of another exposure and contrast, some of them blurred or grainy."""
    changed = []
    for image in images:
        image = np.clip(image, 0, 1) ** rng.uniform(0.7, 1.4)
        image = 0.5 + rng.uniform(0.7, 1.2) * (image - 0.5)
        if rng.uniform() < 0.3:
            image = gaussian_filter(image, (0, 1.0, 1.0))
        elif rng.uniform() < 0.4:
            image = image + 0.03 * rng.standard_normal(image.shape)
        changed.append(np.clip(image, 0, 1).astype(np.float32))
    return np.stack(changed)


def glyphs(
    fonts: tuple[str, ...], count: int, size: int, height: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Drawn digits (count, size, size) from 0 to 1, turned, sheared, moved and blurred; labels.

    Args:
        fonts: files of matplotlib.
        count: how many.
        size: of the images.
        height: of the digits, as a share of the image's.
        rng: draws fonts and positions.
    """
    stamps = [[_stamp(font, str(digit)) for font in fonts] for digit in range(10)]
    labels = rng.permutation(np.arange(count) % 10)
    images = np.empty((count, size, size), np.float32)
    for number, label in enumerate(labels):
        image = _bent(stamps[label][rng.integers(len(fonts))], size, height, rng)
        images[number] = np.clip(gaussian_filter(image, rng.uniform(0.2, 0.6) * size / 28), 0, 1)
    return images, labels


def handwriting(size: int, margin: int) -> tuple[Array, Array]:
    """scikit-learn's 1797 digits of 43 writers, scaled to (n, size, size) with a margin; labels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    inner = size - 2 * margin
    images = np.zeros((len(digits.images), size, size), np.float32)
    for image, drawn in zip(images, digits.images, strict=True):
        large = Image.fromarray(np.float32(drawn / 16.0)).resize((inner, inner), 3)
        image[margin : size - margin, margin : size - margin] = np.clip(np.asarray(large), 0, 1)
    return images, digits.target


def coloured(shapes: Array, pictures: list[Array], rng: np.random.Generator) -> Array:
    """Digits (n, size, size) in a colour on crops of pictures: (n, 3, size, size)."""
    size = shapes.shape[-1]
    grounds = crops(pictures, len(shapes), size, rng)
    # House numbers stand on grounds of little contrast, in a colour that stands out.
    levels = grounds.mean((1, 2, 3), keepdims=True)
    grounds = levels + 0.35 * (grounds - levels)
    contrast = rng.uniform(0.3, 0.6, (len(shapes), 1, 1, 1))
    sign = np.where(levels > 0.5, -1.0, 1.0)
    tint = 0.1 * rng.standard_normal((len(shapes), 3, 1, 1))
    colour = np.clip(levels + sign * contrast + tint, 0, 1)
    images = grounds + shapes[:, None] * (colour - grounds)
    return np.clip(images, 0, 1).astype(np.float32)


def standardised(images: Array, mean: tuple[float, ...], spread: tuple[float, ...]) -> torch.Tensor:
    """Images (n, channels, h, w) from 0 to 1, less the mean and by the spread of each channel."""
    shape = (1, -1, 1, 1)
    scaled = (images - np.reshape(mean, shape)) / np.reshape(spread, shape)
    return torch.from_numpy(scaled.astype(np.float32))


def _stamp(font: str, digit: str) -> Array:
    """A digit, white on black, in the middle of 64×64 pixels."""
    from matplotlib.ft2font import FT2Font

    drawing = FT2Font(str(installed(_MATPLOTLIB) / _FONTS / font))
    drawing.set_size(1.37 * _HEIGHT, 72)  # digits are 1 / 1.37 of a font's size high
    drawing.set_text(digit)
    drawing.draw_glyphs_to_bitmap()
    drawn = np.asarray(drawing.get_image(), np.float32)[:64, :64] / 255.0
    image = np.zeros((64, 64), np.float32)
    top, left = ((64 - side) // 2 for side in drawn.shape)
    image[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return image


def _bent(image: Array, size: int, height: float, rng: np.random.Generator) -> Array:
    """Turned, sheared, stretched, moved, and brought to (size, size)."""
    angle, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pixels = _HEIGHT / (size * height) * rng.uniform(0.9, 1.15, 2)
    matrix = turn @ np.array([[1, 0], [shear, 1]]) @ np.diag(pixels)
    shift = rng.uniform(-1.5, 1.5, 2) * size / 28
    middle = 31.5 - matrix @ (np.full(2, (size - 1) / 2) + shift)
    return affine_transform(image, matrix, middle, (size, size), order=1)
