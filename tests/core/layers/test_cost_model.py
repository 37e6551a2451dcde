"""Costs at ranks: by formula, as the templates have them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from rankfold.decompose.base import Factorization
from rankfold.decompose.channel_svd import ChannelSVD
from rankfold.decompose.guarded import Guarded
from rankfold.errors import RankfoldError, Refused
from rankfold.layers.cost_model import Costs
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings, Usage
from rankfold.ops import Conv, ConvTranspose, Embedding, Extent, Linear, Op
from rankfold.plugins.registry import registry

RNG = np.random.default_rng(4)
ALL = ("svd", "tucker2", "spatial_svd", "channel_svd", "cp", "cp3")
INTERPOLATIVE = ("svd_id", "tucker2_id", "channel_svd_id")
OPS: list[tuple[Op, Extent | None]] = [
    (Linear(RNG.standard_normal((23, 17)), np.ones(23)), (7,)),
    (Linear(RNG.standard_normal((24, 9)), groups=2), None),
    (Embedding(RNG.standard_normal((31, 13))), (5,)),
    (Conv(RNG.standard_normal((14, 9, 3, 5)), np.ones(14), padding=(1, 2), stride=2), (1, 11, 13)),
    (Conv(RNG.standard_normal((14, 9, 3, 5)), padding="same", dilation=2), (2, 11, 13)),
    (Conv(RNG.standard_normal((12, 1, 3, 3)), groups=12), (1, 8, 9)),
    (Conv(RNG.standard_normal((10, 6, 1, 1))), None),
    (ConvTranspose(RNG.standard_normal((8, 5, 4, 3)), stride=2, padding=1), (1, 7, 6)),
    (Conv(RNG.standard_normal((6, 4, 3))), (1, 19)),
]


def every_rank(most: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    yield from (most, tuple(1 for _ in most))
    for _ in range(20):
        yield tuple(int(RNG.integers(1, limit + 1)) for limit in most)


@pytest.mark.parametrize("attended", [0, 700])
@pytest.mark.parametrize("case", range(len(OPS)))
def test_a_formula_counts_what_the_chain_of_every_method_costs(case: int, attended: int) -> None:
    op, extent = OPS[case]
    costs = Costs(op, Usage(None if extent is None else [extent, extent], attended))
    applied = 0
    for name, method in registry().methods((*ALL, *INTERPOLATIVE)).items():
        if method.refuse(op) is not None:
            continue
        applied += 1
        guarded = Guarded(name, method)
        assert guarded.multilinear_costs
        for ranks in every_rank(method.max_ranks(op)):
            assert costs.at_ranks(guarded, ranks) == costs.of(method.template(op, ranks))
    assert applied


@pytest.mark.parametrize(
    ("case", "methods", "most"),
    [(0, ALL[:4], 2), (3, ALL[:4], 4 + 2 + 2), (0, INTERPOLATIVE, 3), (3, INTERPOLATIVE, 9 + 3)],
)
def test_offers_of_a_layer_build_a_few_templates(
    case: int, methods: tuple[str, ...], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    usual = Guarded.template

    def template(self: Guarded, op: Op, ranks: tuple[int, ...]) -> tuple[Op, ...]:
        built.append(ranks)
        return usual(self, op, ranks)

    monkeypatch.setattr(Guarded, "template", template)
    op = OPS[case][0]
    layer = Layer(("x",), lambda: op, Settings(registry().methods(methods), "balanced", 0))
    assert len(layer.offers()) > 3
    assert len(built) <= most


class OnlyTemplate(ChannelSVD):
    """As a plugin has it that knows nothing of formulas."""

    multilinear_costs = False


class Twisted(ChannelSVD):
    """States a formula that its chains do not follow."""

    def template(self, op: Op, ranks: tuple[int, ...]) -> tuple[Op, ...]:
        return super().template(op, (min(8, max(1, ranks[0] ** 2 // 2)),))

    def decompose(self, op: Op, ranks: tuple[int, ...], **settings: object) -> Factorization:
        ranks = (min(8, max(1, ranks[0] ** 2 // 2)),)
        return super().decompose(op, ranks, **settings)  # type: ignore[arg-type]  # handed on


def test_a_method_without_a_formula_is_counted_by_its_templates() -> None:
    op, _ = OPS[3]
    costs = Costs(op, Usage())
    plain, other = Guarded("a", ChannelSVD()), Guarded("b", OnlyTemplate("b"))
    assert not other.multilinear_costs
    assert all(costs.at_ranks(plain, (r,)) == costs.at_ranks(other, (r,)) for r in range(1, 15))


@pytest.mark.parametrize("ranks", [(0,), (15,), (3, 4), (True,), (2.0,)])
def test_ranks_that_there_are_not_are_refused_as_by_the_template(ranks: tuple[int, ...]) -> None:
    layer = Layer(("x",), lambda: OPS[3][0], Settings({"m": ChannelSVD()}, "balanced", 0))
    with pytest.raises(RankfoldError, match="layer 'x': channel_svd"):
        layer.template_cost("m", ranks)


def test_a_chain_that_does_not_cost_what_the_formula_says_is_refused() -> None:
    layer = Layer(("x",), lambda: OPS[3][0], Settings({"m": Twisted()}, "balanced", 0))
    with pytest.raises(Refused, match="multilinear_costs"):
        layer.candidate("m", (4,))
