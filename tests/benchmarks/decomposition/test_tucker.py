"""Tucker-2 with EVBMF ranks, over the layers of two networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tests.benchmarks.decomposition import ours, peers
from tests.benchmarks.decomposition.comparison import Row, Side
from tests.benchmarks.decomposition.sections import TUCKER_RESNET50, TUCKER_VGG16, Section
from tests.benchmarks.decomposition.weights import kernel

import rankfold as rf


class Case(NamedTuple):
    """A 3x3 convolution and how often its network has it."""

    name: str
    section: Section
    layer: str
    out: int
    into: int
    occurs: int = 1


_VGG16 = {
    "conv1_1": (64, 3),
    "conv1_2": (64, 64),
    "conv2_1": (128, 64),
    "conv2_2": (128, 128),
    "conv3_1": (256, 128),
    "conv3_2": (256, 256),
    "conv3_3": (256, 256),
    "conv4_1": (512, 256),
    "conv4_2": (512, 512),
    "conv4_3": (512, 512),
    "conv5_1": (512, 512),
    "conv5_2": (512, 512),
    "conv5_3": (512, 512),
}
_RESNET50 = {"layer1": (64, 3), "layer2": (128, 4), "layer3": (256, 6), "layer4": (512, 3)}

CASES = [
    *(Case(f"vgg16-{name}", TUCKER_VGG16, name, *sides) for name, sides in _VGG16.items()),
    *(
        Case(f"resnet50-{name}", TUCKER_RESNET50, f"{name} ({count} of)", width, width, count)
        for name, (width, count) in _RESNET50.items()
    ),
]
SMOKE = [Case("small", TUCKER_VGG16, "small", 40, 31)]


def test_tucker_2_is_no_worse_than_peers(case: Case, compare: Callable[..., Row]) -> None:
    weight = kernel(case.out, case.into, 3, seed=CASES.index(case) if case in CASES else 0)
    op = rf.Conv(weight=weight, padding=1)
    ranks, _ = ours.tucker(op)
    compare(
        case.section,
        f"{case.layer} {case.out}x{case.into}x3x3",
        ranks,
        [Side("ours", partial(ours.tucker, op), lambda found: ours.error(op, found[1]))],
        [
            Side(name, run, lambda found: ours.distance(weight, peers.dense_tucker(found)))
            for name, run in (
                ("partial_tucker", partial(peers.partial_tucker, weight, ranks)),
                ("EVBMF by SVD, partial_tucker", partial(peers.scripted_tucker, weight)),
            )
        ],
        count=case.occurs,
    )
