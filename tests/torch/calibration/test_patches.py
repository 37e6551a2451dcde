"""Rows of a layer's input at sampled positions, against the reference forward pass."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rankfold.calibration.position_sample import PositionSample
from rankfold.linalg import Array
from rankfold.ops import Conv, ConvTranspose, Linear
from rankfold.ops.reference import forward
from rankfold_torch.calibration import patches


def weight(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def geometries() -> Iterator[Any]:
    same, lower = {"padding": "same"}, {"padding": "same_lower"}
    for axes, sizes, kernel in ((1, (13,), (4,)), (2, (11, 9), (3, 2)), (3, (7, 6, 5), (2, 3, 1))):
        pairs = [(axis + 1, axis) for axis in range(axes)]
        for name, options in {
            "plain": {},
            "stride": {"stride": tuple(range(2, 2 + axes))},
            "pairs": {"padding": pairs},
            "dilation": {"dilation": 2, "padding": 1},
            "groups": {"groups": 3, "padding": 1},
            "depthwise": {"groups": 6, "stride": 2},
            "same": same,
            "same stride": {**same, "stride": 2, "dilation": 2},
            "same lower": {**lower, "stride": 2},
            "reflect": {"padding": pairs, "padding_mode": "reflect"},
            "replicate": {"padding": pairs, "padding_mode": "replicate", "stride": 2},
            "circular": {"padding": "same", "padding_mode": "circular"},
        }.items():
            groups: Any = options.get("groups", 1)
            op = Conv(weight(12, 6 // groups, *kernel), weight(12), **options)  # type: ignore[arg-type]
            yield pytest.param(op, (5, 6, *sizes), id=f"conv{axes}d {name}")
        for name, options in {
            "plain": {},
            "stride": {"stride": tuple(range(2, 2 + axes))},
            "pairs": {"stride": 2, "padding": pairs, "output_padding": 1},
            "dilation": {"dilation": 2, "padding": 1, "stride": 3, "output_padding": 2},
            "groups": {"groups": 2, "stride": 2},
            "cropped": {"padding": kernel, "stride": 2},
        }.items():
            groups = options.get("groups", 1)
            op = ConvTranspose(weight(10, 6 // groups, *kernel), weight(10), **options)  # type: ignore[arg-type]
            yield pytest.param(op, (5, 6, *sizes), id=f"transposed{axes}d {name}")
    yield pytest.param(Linear(weight(7, 5), weight(7)), (3, 5), id="linear")
    yield pytest.param(Linear(weight(7, 5), weight(7)), (2, 3, 4, 5), id="linear 4-d")
    yield pytest.param(Linear(weight(7, 5)), (5,), id="linear 1-d")
    yield pytest.param(Linear(weight(8, 3), weight(8), groups=2), (3, 11, 6), id="linear groups")


def all_rows(op: Any, x: torch.Tensor, drawn: PositionSample, step: int = 7) -> torch.Tensor:
    taken = patches.Inputs(op, x, drawn)
    return torch.cat(
        [taken.take(slice(i, min(i + step, drawn.rows))) for i in range(0, drawn.rows, step)]
    )


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize(("op", "shape"), list(geometries()))
def test_rows_are_what_the_weight_meets(
    op: Linear | Conv | ConvTranspose, shape: tuple[int, ...], few: bool
) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    y = torch.from_numpy(forward(op, x.numpy()))
    examples = 4000 if few else 1
    drawn = patches.sample(op, shape, examples, np.random.default_rng(0))
    assert (drawn.chosen is None) == (not few or drawn.positions <= 4)
    rows = all_rows(op, x, drawn)
    split = torch.from_numpy(op.weight.reshape(op.groups, len(op.weight) // op.groups, -1))
    bias = 0 if op.bias is None else torch.from_numpy(op.bias).reshape(1, op.groups, -1)
    outputs = torch.einsum("god,rgd->rgo", split, rows) + bias
    torch.testing.assert_close(outputs, patches.outputs(op, y, drawn, slice(0, drawn.rows)))
    if not few:
        torch.testing.assert_close(outputs, patches.every_output(op, y))


def test_rows_of_an_input_without_a_batch() -> None:
    op = Conv(weight(4, 3, 2, 3), stride=2, padding=1)
    x = torch.randn(3, 8, 9, dtype=torch.float64)
    drawn = patches.sample(op, x.shape, 1, np.random.default_rng(0))
    batched = patches.sample(op, (1, *x.shape), 1, np.random.default_rng(0))
    assert drawn.images == 1
    assert torch.equal(all_rows(op, x, drawn), all_rows(op, x[None], batched))


def test_every_image_has_positions_of_its_own() -> None:
    op = Conv(weight(4, 3, 3, 3))
    drawn = patches.sample(op, (6, 3, 40, 40), 1000, np.random.default_rng(0))
    assert drawn.chosen is not None
    assert drawn.chosen.shape == (6, 13)
    assert all(len(set(row.tolist())) == 13 for row in drawn.chosen)
    assert len({tuple(row.tolist()) for row in drawn.chosen}) == 6
