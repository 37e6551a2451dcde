from __future__ import annotations

from typing import Any

import pytest

from rankfold.report import vega
from rankfold.report.vega import axis, beside, chart, text

VALUES = [{"x": 1.0}, {"x": 2.0}]


def test_a_chart_is_as_wide_as_its_page_with_its_layers_in_order() -> None:
    layers = [vega.layer(None, "line", {}), vega.layer(None, "point", {})]
    spec = chart(120, layers, VALUES)
    assert (spec["width"], spec["height"]) == ("container", 120)
    assert [part["mark"]["type"] for part in spec["layer"]] == ["line", "point"]
    assert spec["data"] == {"values": VALUES}
    assert "data" not in chart(120, layers)


def test_colours_are_variables_of_the_style_sheet() -> None:
    colours = [
        value
        for part in chart(9, ())["config"].values()
        if isinstance(part, dict)
        for name, value in part.items()
        if name.lower().endswith("color")
    ]
    assert colours
    assert all(colour.startswith("var(--") for colour in colours)


@pytest.mark.parametrize(
    ("values", "data"),
    [
        (VALUES, {"data": {"values": VALUES}}),
        ("name", {"data": {"name": "name"}}),
        (None, {}),
    ],
)
def test_marks_have_values_a_name_or_those_of_the_chart(values: Any, data: dict[str, Any]) -> None:
    marks = vega.layer(values, "bar", {"x": axis("x", None)}, opacity=0.5)
    assert {key: value for key, value in marks.items() if key == "data"} == data
    # Each of hundreds of marks would be read out.
    assert marks["mark"] == {"type": "bar", "aria": False, "opacity": 0.5}


def test_a_position_may_have_a_scale_and_options_of_its_axis() -> None:
    position = axis("x", "rank", scale={"type": "log"}, tickCount=3)
    assert position["scale"] == {"type": "log"}
    assert position["axis"] == {"tickCount": 3}
    assert "scale" not in axis("x", "rank")
    assert text("x") == {"field": "x", "type": "nominal"}


def test_a_text_stands_to_the_left_of_a_mark_that_is_far_to_the_right() -> None:
    expression = beside("x", 6)["dx"]["expr"]
    assert expression == "datum.x > 0.5 * domain('x')[1] ? -6 : 6"
