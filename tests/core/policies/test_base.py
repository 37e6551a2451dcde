"""What each policy chooses, on layers without a model."""

import numpy as np
import pytest

import rankfold as rf
from rankfold.layers.settings import Settings, Usage
from rankfold.ops import Op, macs, params
from rankfold.plugins.registry import registry
from rankfold.policies.base import Choice, Policy
from rankfold.policies.best_method import _largest_within

DEFAULT = ("svd", "tucker2", "spatial_svd", "channel_svd")


def low_rank(rng: np.random.Generator, rank: int, *shape: int) -> np.ndarray:
    left, right = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, *shape[1:]))
    return np.tensordot(left, right, axes=1) + 0.01 * rng.standard_normal(shape)


def layer(op: Op, methods: tuple[str, ...] = DEFAULT, extents: object = None) -> rf.Layer:
    settings = Settings(registry().methods(methods), "balanced", 0)
    return rf.Layer(("x",), lambda: op, settings, Usage(extents))


def choose(policy: Policy, op: Op, methods: tuple[str, ...] = DEFAULT) -> Choice:
    (choice,) = policy.allocate([layer(op, methods)])
    return choice


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_energy_takes_the_least_rank_that_keeps_the_share(
    share: float, rng: np.random.Generator
) -> None:
    weight = rng.standard_normal((31, 400)) * (1.0 + np.arange(31))[:, None] ** -1.5
    (rank,) = choose(rf.Energy(share), rf.Linear(weight)).ranks
    held = np.cumsum(np.linalg.svd(weight, compute_uv=False) ** 2)
    assert held[rank - 1] >= share * held[-1] * (1 - 1e-9)
    assert rank == 1 or held[rank - 2] < share * held[-1]


def test_ratio_takes_a_share_of_each_channel_count(rng: np.random.Generator) -> None:
    op = rf.Conv(rng.standard_normal((47, 29, 3, 3)))
    assert choose(rf.Ratio(1 / 3), op, ("tucker2",)) == Choice("tucker2", (15, 9))
    assert choose(rf.Ratio(1 / 3), op, ("channel_svd",)).ranks == (15,)
    assert choose(rf.Ratio(1 / 3), op, ("cp",)).ranks == (15,)
    assert choose(rf.Ratio(1e-6), op, ("tucker2",)).ranks == (1, 1)


def test_vbmf_takes_the_rank_of_each_unfolding(rng: np.random.Generator) -> None:
    weight = low_rank(rng, 5, 47, 29, 3, 3)
    expected = tuple(
        rf.evbmf(np.moveaxis(weight, mode, 0).reshape(weight.shape[mode], -1)).rank
        for mode in (0, 1)
    )
    anchor = choose(rf.VBMF(), rf.Conv(weight), ("tucker2",))
    if min(expected):
        assert anchor.ranks == expected
    assert choose(rf.VBMF(), rf.Conv(weight), ("channel_svd",)).ranks == (expected[0],) == (5,)


def test_weaken_goes_from_the_evbmf_rank_to_the_full_rank(rng: np.random.Generator) -> None:
    op = rf.Linear(low_rank(rng, 5, 41, 400))
    ranks = [choose(rf.VBMF(weaken=w), op).ranks[0] for w in (0.0, 0.25, 0.5)]
    assert ranks == [5, 14, 23]


def test_vbmf_of_noise_leaves_the_layer_alone(rng: np.random.Generator) -> None:
    choice = choose(rf.VBMF(), rf.Linear(rng.standard_normal((41, 90))))
    assert choice == Choice(None, reason="rank 0: EVBMF found no structure above the noise")


def test_vbmf_with_known_noise(rng: np.random.Generator) -> None:
    op = rf.Linear(low_rank(rng, 5, 41, 400))
    assert choose(rf.VBMF(sigma2=1e-4), op).ranks == (5,)
    assert choose(rf.VBMF(sigma2=1e4), op).method is None


@pytest.mark.parametrize("policy", [rf.Energy(0.8), rf.Ratio(0.4)])
@pytest.mark.parametrize("shape", [(47, 29, 3, 3), (29, 47, 5, 1), (31, 64, 3), (11, 13, 3, 2, 2)])
def test_the_method_has_the_least_error_within_the_cost_of_the_first(
    policy: Policy, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    weight = (
        rng.standard_normal(shape)
        * (1.0 + np.arange(shape[0])).reshape(-1, *[1] * (len(shape) - 1)) ** -0.7
    )
    op = rf.Conv(weight)
    first = choose(policy, op, ("tucker2",))
    assert first.method == "tucker2"
    view = layer(op, (*DEFAULT, "cp3"))
    limit = view.template_cost("tucker2", first.ranks)
    (best,) = policy.allocate([view])
    chosen = view.candidate(best.method, best.ranks)
    assert chosen.cost.within(limit)
    for name in view.methods:
        base = view.methods[name].max_ranks(op)
        ranks = first.ranks if name == "tucker2" else _largest_within(view, name, limit, base)
        if ranks is not None:
            assert chosen.error <= view.candidate(name, ranks).error * (1 + 1e-5)


@pytest.mark.parametrize("policy", [rf.Energy(0.99), rf.Ratio(0.9), rf.VBMF(weaken=0.9)])
def test_no_layer_grows(policy: Policy, rng: np.random.Generator) -> None:
    for shape in [(13, 17, 3, 3), (64, 3, 3, 3), (5, 7), (40, 40), (16, 1, 3, 3)]:
        weight = low_rank(rng, 1, *shape)
        op = (
            rf.Linear(weight)
            if len(shape) == 2
            else rf.Conv(weight, groups=16 if shape[1] == 1 else 1)
        )
        view = layer(op)
        (choice,) = policy.allocate([view])
        if choice.method is not None:
            assert view.template_cost(choice.method, choice.ranks).params < params(op)
        else:
            assert choice.reason


def test_a_stage_before_the_stride_counts_at_input_resolution(rng: np.random.Generator) -> None:
    op = rf.Conv(rng.standard_normal((32, 64, 3, 3)), stride=4)
    extent = (1, 64, 64)
    view = layer(op, ("tucker2",), (extent,))
    (choice,) = rf.Ratio(0.9).allocate([view])
    assert choice.method is None
    assert choice.reason.startswith("grew: ")
    template = view.methods["tucker2"].template(op, (12, 57))
    assert params(template) < params(op)
    assert macs(template, extent) > macs(op, extent)


def test_depthwise_convolutions_are_left_alone_or_split_along_the_axes(
    rng: np.random.Generator,
) -> None:
    small = choose(rf.Ratio(0.9), rf.Conv(rng.standard_normal((16, 1, 2, 2)), groups=16))
    assert small.method is None
    assert small.reason.startswith("depthwise")
    large = choose(rf.Energy(0.1), rf.Conv(rng.standard_normal((16, 1, 7, 7)), groups=16))
    assert large.method == "spatial_svd"


def test_groups_share_the_largest_of_their_ranks(rng: np.random.Generator) -> None:
    weight = np.concatenate([low_rank(rng, rank, 20, 60, 3) for rank in (2, 5)])
    assert choose(rf.VBMF(), rf.Conv(weight, groups=2), ("channel_svd",)).ranks == (5,)


def test_ranks_are_obeyed_even_where_the_layer_grows(rng: np.random.Generator) -> None:
    op = rf.Conv(rng.standard_normal((13, 11, 3, 3)))
    assert choose(rf.Ranks((5, 7)), op).ranks == (5, 7)
    assert choose(rf.Ranks(6), op).ranks == (6, 6)
    full = choose(rf.Ranks("full"), op)
    assert full.ranks == (13, 11)
    assert full.reason.startswith("grew: parameters")


def test_ranks_may_be_integers_of_numpy(rng: np.random.Generator) -> None:
    op = rf.Conv(rng.standard_normal((13, 11, 3, 3)))
    given = [np.int64(6), (np.int32(5), np.uint8(7)), {"x": np.int64(6), "*": (np.int64(3),)}]
    for ranks, plain in zip(given, [6, (5, 7), {"x": 6, "*": (3,)}], strict=True):
        assert repr(rf.Ranks(ranks)) == repr(rf.Ranks(plain))
        assert choose(rf.Ranks(ranks), op) == choose(rf.Ranks(plain), op)
        assert all(type(rank) is int for rank in choose(rf.Ranks(ranks), op).ranks)


@pytest.mark.parametrize("given", ["0.9", "x"])
@pytest.mark.parametrize("policy", [rf.Energy, rf.Ratio, rf.VBMF])
def test_text_in_place_of_a_number_is_named(policy: type[Policy], given: str) -> None:
    with pytest.raises(rf.RankfoldError, match=rf"^{policy.__name__}: \w+ '{given}'; use one"):
        policy(given)


def test_ranks_by_pattern(rng: np.random.Generator) -> None:
    op = rf.Linear(rng.standard_normal((13, 11)))
    assert choose(rf.Ranks({"x": 3, "*": 4}), op).ranks == (3,)
    with pytest.raises(rf.RankfoldError, match="pattern 'y' matches no layer; the layers are x"):
        choose(rf.Ranks({"y": 3}), op)


def test_a_rank_beyond_the_maximum_is_an_error_by_pattern_and_a_reason_for_all(
    rng: np.random.Generator,
) -> None:
    op = rf.Conv(rng.standard_normal((70, 64, 3, 3)))
    message = "rank 70 exceeds 64 input channels; use at most 64"
    assert message in choose(rf.Ranks((20, 70)), op).reason
    with pytest.raises(rf.RankfoldError, match=f"layer 'x': tucker2: {message}"):
        choose(rf.Ranks({"x": (20, 70)}), op)


@pytest.mark.parametrize("ranks", [0, -3, True, 2.5, "most", (), (3, 0), {"a": 0}, None])
def test_ranks_that_are_none_are_refused(ranks: object) -> None:
    with pytest.raises(rf.RankfoldError, match="Ranks"):
        rf.Ranks(ranks)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rf.Energy(0.0),
        lambda: rf.Energy(1.1),
        lambda: rf.Energy(float("nan")),
        lambda: rf.Ratio(0.0),
        lambda: rf.Ratio(-1),
        lambda: rf.VBMF(weaken=1.5),
        lambda: rf.VBMF(weaken=-0.1),
        lambda: rf.VBMF(sigma2=0.0),
        lambda: rf.Ratio(None),
        lambda: rf.VBMF(sigma2="x"),
    ],
)
def test_arguments_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(rf.RankfoldError, match=r"use one|is positive"):
        make()


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("vbmf:", rf.VBMF()),
        ("vbmf:0.25", rf.VBMF(weaken=0.25)),
        ("energy:0.9", rf.Energy(0.9)),
        ("ratio:1/4", rf.Ratio(0.25)),
        ("ranks:full", rf.Ranks("full")),
        ("ranks:16", rf.Ranks(16)),
        ("ranks:16,24", rf.Ranks((16, 24))),
    ],
)
def test_policies_are_read_from_text(text: str, policy: Policy) -> None:
    name, _, argument = text.partition(":")
    assert registry().policies[name].from_text(argument) == policy


@pytest.mark.parametrize(
    "text", ["energy:", "ratio:a", "ratio:1/0", "ranks:", "ranks:a,b", "vbmf:x"]
)
def test_bad_text_is_an_error_that_shows_how(text: str) -> None:
    name, _, argument = text.partition(":")
    with pytest.raises(rf.RankfoldError, match=f"policy {name}: .*write"):
        registry().policies[name].from_text(argument)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("policy", [rf.VBMF(), rf.Energy(0.9), rf.Ratio(0.5)])
def test_a_weight_that_cannot_be_decomposed_gives_a_reason(policy: Policy, value: float) -> None:
    choice = choose(policy, rf.Linear(np.full((5, 7), value)))
    if choice.method is not None:
        view = layer(rf.Linear(np.full((5, 7), value)))
        with pytest.raises(Exception, match="the weight"):
            view.candidate(choice.method, choice.ranks)
    else:
        assert "the weight" in choice.reason
