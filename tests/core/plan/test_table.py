"""Tables that take a line a layer, on terminals of usual widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import rankfold as rf
from rankfold.plan.contents import contents
from rankfold.plan.table import Contents, as_table, fitted, numbered, shortened

REASON = "its output is an output of the model; name it with include= to have it compressed"


def residual(*, informed: bool) -> rf.Plan:
    """A plan as long and as wide as that of a ResNet-50 with example inputs."""
    layers = [
        rf.LayerPlan(
            path=f"layer{stage}.{block}.{name}",
            op="Conv 1024→2048 3×3 stride 2×2",
            method=method,
            ranks=ranks,
            params=(2_359_296, 1_441_792),
            macs=(115_605_504, 70_647_808),
            error=0.4321,
            predicted=0.1234 if informed else None,
            measured=0.1324 if informed else None,
        )
        for stage in range(1, 5)
        for block in range(3)
        for name, method, ranks in (
            ("conv1", "svd", (384,)),
            ("conv2", "spatial_svd", (512,)),
            ("conv3", "tucker2", (384, 402)),
            ("downsample.0", "channel_svd", (1024,)),
        )
    ]
    head = rf.LayerPlan(path="fc", op="Linear 2048→1000", params=(2_049_000,) * 2, reason=REASON)
    return rf.Plan(layers=(*layers, head), policy="Energy(share=0.8)", size=25_557_032)


@pytest.mark.parametrize("informed", [False, True])
@pytest.mark.parametrize("width", [80, 100, 120, 300])
def test_each_layer_takes_one_line(width: int, informed: bool) -> None:
    plan = residual(informed=informed)
    shown = fitted(contents(plan), width)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(as_table(shown))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    # A title, three lines of the frame, the names of the columns, and a line for each layer.
    assert len(lines) == 5 + len(plan.layers)
    assert max(map(len, lines)) <= width
    methods = [layer.method or "–" for layer in plan.layers]
    assert all(m in line for m, line in zip(methods, lines[4:-1], strict=True))
    assert REASON in shown.totals or any(REASON in line for line in lines)
    assert ("measured" in shown.columns) == informed


def test_names_that_are_shortened_differ() -> None:
    names = [row[0] for row in fitted(contents(residual(informed=True)), 80).rows]
    assert any("…" in name for name in names)
    assert len(set(names)) == len(names)


def test_a_table_that_fits_says_all() -> None:
    table = contents(residual(informed=True))
    assert fitted(table, 300) == table
    assert "reason" in table.columns


def test_what_cannot_fit_keeps_its_other_columns() -> None:
    table = Contents("", {"name": False, "a": True}, (("n" * 50, "1" * 30),), "")
    assert fitted(table, 20).rows == (("nnnnnnn…nnnnnn", "1" * 30),)


def test_names_are_shortened_in_their_middle_and_stay_apart() -> None:
    assert shortened(["layer1.0.downsample.0", "short"], 14) == ["layer1.…mple.0", "short"]
    names = [f"model.layers.{index}.mlp.down_proj" for index in range(3)]
    assert shortened(names, 18) == [f"mo…{index}.mlp.down_proj" for index in range(3)]
    assert shortened(["x" * 40, "x" * 41], 5) == ["xx…xx", "xx…xx"]  # whatever is left out
    assert all(len(shortened(["x" * 40], most)[0]) == most for most in range(2, 40))


def test_equal_texts_have_one_number() -> None:
    marks, lines = numbered(["b", "", "a", "b"])
    assert marks == ["1", "", "2", "1"]
    assert lines == ["1: b", "2: a"]
