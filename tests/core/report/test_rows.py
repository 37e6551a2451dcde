"""A layer as a row: what was done, in words, counts before and after, and further facts."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from tests.core.report.plans import layer, record

import rankfold as rf
from rankfold.report.rows import Row, percent, rows_of


def row(planned: rf.LayerPlan) -> Row:
    (shown,) = rows_of([planned])
    return shown


def test_what_was_done_is_said_with_the_name_of_the_method() -> None:
    assert row(layer(0)).what == "Tucker-2, ranks 9, 7"
    one = msgspec.structs.replace(layer(0), method="svd_id", ranks=(5,))
    assert row(one).what == "Truncated SVD, interpolative, rank 5"
    assert row(msgspec.structs.replace(one, method="of_a_plugin")).what == "of_a_plugin, rank 5"
    assert row(layer(4)).what == "left alone"
    assert row(msgspec.structs.replace(layer(4), refit=True)).what == "left alone, refitted"


def test_the_error_that_says_most_comes_first() -> None:
    planned = layer(0)
    assert row(planned).output_error == planned.measured
    assert row(msgspec.structs.replace(planned, measured=None)).output_error == planned.predicted
    assert row(layer(0, informed=False)).output_error == planned.error
    assert row(layer(4)).output_error is None


def test_counts_have_the_share_that_is_left() -> None:
    params = row(layer(0)).params
    assert params is not None
    assert (params.text, params.percent) == ("1.02k → 341", "33 %")
    kept = row(layer(4)).params
    assert kept is not None
    assert kept.text == "5.12k"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.004, "0.4 %"), (0.0994, "9.9 %"), (0.0996, "10 %"), (1, "100 %")],
)
def test_small_shares_keep_a_digit(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_rank_without_a_spectrum_is_told() -> None:
    weighted = msgspec.structs.replace(layer(0), spectra=(record("weighted", (48, 576), 1, 9),))
    assert dict(row(weighted).facts)["Rank 7"].startswith("no spectrum of it")
    assert not any(name.startswith("Rank") for name, _ in row(layer(0)).facts)


def test_other_facts_are_named_where_there_are_such() -> None:
    planned = msgspec.structs.replace(layer(0), moments="diagonal", sensitivity=3.25)
    facts = dict(row(planned).facts)
    assert set(facts) == {"Refit", "Input moments", "Sensitivity to noise"}
    assert facts["Sensitivity to noise"].startswith("3.25 ")
    assert row(layer(4)).facts == ()


def test_a_model_that_is_one_layer_has_a_name() -> None:
    assert row(layer(0, "")).name == "(the model)"


def test_of_many_layers_those_are_printed_that_cost_most() -> None:
    costs = np.random.default_rng(0).permutation(40)
    plans = [
        msgspec.structs.replace(layer(index), macs=(int(cost), 0), params=(7, 7))
        for index, cost in enumerate(costs)
    ]
    plans[3] = msgspec.structs.replace(plans[3], macs=None)
    rows = rows_of(plans)
    assert [row.index for row in rows] == list(range(40))
    printed = sorted((row.macs.before for row in rows if row.printed and row.macs), reverse=True)
    known = sorted((int(cost) for index, cost in enumerate(costs) if index != 3), reverse=True)
    assert 0 < len(printed) < 40
    assert printed == known[: len(printed)]
    assert all(row.printed for row in rows_of(plans[:5]))
