"""What each method would save, by every policy."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.core.checkpoints.files import normal, sound

import rankfold as rf
from rankfold.cli import inspect
from rankfold.cli.options import Recipe
from rankfold.layers.layer import Layer
from rankfold.layers.settings import Settings
from rankfold.plugins.registry import registry

POLICIES = ["vbmf", "energy:0.9", "ratio:0.3", "ranks:3", "budget:0.5", "budget:0.000001"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_asked_about_every_method(
    tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel, matrix = (14, 10, 3, 5), (40, 30)
    tensors = {
        "a.weight": ("F32", matrix, normal(0, *matrix)),
        "b.weight": ("F32", kernel, normal(1, *kernel)),
    }
    file = sound(tmp_path / "x.safetensors", tensors)
    inspect.run(Recipe(target=str(file), policy=policy))
    assert "2 tensors; 0 others" in capsys.readouterr().out


def test_one_method_of_a_layer_offers_what_it_offers_alone() -> None:
    op = rf.Conv(weight=np.random.default_rng(0).standard_normal((14, 10, 3, 5)))

    def layer(*names: str) -> Layer:
        return Layer(("b",), lambda: op, Settings(registry().methods(names), "balanced", 0))

    names = ("tucker2", "spatial_svd", "channel_svd")
    both = layer(*names)
    both.offers()
    for name in names:
        view = both.with_method(name)
        view.release()
        offers = [(o.method, o.ranks, o.cost) for o in view.offers()]
        assert offers == [(o.method, o.ranks, o.cost) for o in layer(name).offers()]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_each_tensor_takes_one_line(
    width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"layer{stage}.{block}.downsample.0" for stage in range(2) for block in (9, 10)]
    tensors = {f"{n}.weight": ("F32", (48, 40, 3, 3), normal(0, 48, 40, 3, 3)) for n in names}
    file = sound(tmp_path / "x.safetensors", tensors)
    monkeypatch.setattr(
        "rankfold.cli.results.wide_console", lambda: Console(width=width, color_system=None)
    )
    inspect.run(Recipe(target=str(file), policy="energy:0.9"))
    out = capsys.readouterr().out.splitlines()
    rows = [line for line in out if line.startswith("│")]
    assert len(rows) == len(names)
    # 9 comes before 10, though files have their tensors by the alphabet.
    assert [".9." in row or ".9…" in row for row in rows] == [True, False, True, False]
    assert all(len(line) <= width for line in out if "│" in line or "━" in line)


@pytest.mark.parametrize("ranks", ["3,4", "500"])
def test_refusals_stand_below_the_table_once(
    ranks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {
        f"{number}.weight": ("F32", (8 + number, 7, 3, 3), normal(0, 8 + number, 7, 3, 3))
        for number in range(9)
    }
    file = sound(tmp_path / "x.safetensors", tensors)
    inspect.run(Recipe(target=str(file), policy=f"ranks:{ranks}"))
    table, below = capsys.readouterr().out.split("└")
    assert sum(line.startswith("│") for line in table.splitlines()) == len(tensors)
    reasons = [line for line in below.splitlines() if line.startswith("(")]
    assert 0 < len(reasons) == len(set(reasons)) <= 7
    # A column tells of its method alone.
    assert "tucker2 applies" not in below
    assert ("(…): " in below) == (ranks == "500")


@pytest.mark.parametrize("field", ["macs", "latency"])
def test_a_limit_that_needs_inputs_is_refused_in_a_line(field: str, tmp_path: Path) -> None:
    file = sound(tmp_path / "x.safetensors", {"a.weight": ("F32", (40, 30), normal(0, 40, 30))})
    with pytest.raises(rf.RankfoldError, match=f"{field}= needs example inputs.*by their param"):
        inspect.run(Recipe(target=str(file), policy=f"budget:{field}=0.5"))


def test_json_has_what_the_table_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {
        "a.weight": ("F32", (40, 30), normal(0, 40, 30)),
        "b.weight": ("F32", (14, 10, 3, 5), normal(1, 14, 10, 3, 5)),
        "c": ("F32", (7,), normal(2, 7)),
    }
    file = sound(tmp_path / "x.safetensors", tensors)
    inspect.run(Recipe(target=str(file), policy="ranks:3"), as_json=True)
    matrix, kernel = json.loads(capsys.readouterr().out)
    assert matrix["tensor"] == "a.weight"
    assert matrix["shape"] == [40, 30]
    svd = matrix["methods"]["svd"]
    assert svd["ranks"] == [3]
    assert svd["share"] == pytest.approx(3 * (40 + 30) / (40 * 30))
    assert len(kernel["evbmf"]) == len(kernel["energy"]) == 2
    assert kernel["methods"]["tucker2"]["ranks"] == [3, 3]
    assert kernel["methods"]["svd"]["share"] is None


def test_the_channels_of_a_flax_kernel_are_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = np.random.default_rng(1).standard_normal((3, 5, 10, 14)).astype(np.float32)
    rows = []
    for name, axes in {"conv.kernel": (0, 1, 2, 3), "conv.weight": (3, 2, 0, 1)}.items():
        array = kernel.transpose(axes)
        file = sound(
            tmp_path / f"{name}.safetensors", {name: ("F32", array.shape, array.tobytes())}
        )
        inspect.run(Recipe(target=str(file), policy="ratio:0.5"), as_json=True)
        rows += json.loads(capsys.readouterr().out)
    flax, torch = ({**row, "tensor": ""} for row in rows)
    assert flax == torch
    assert flax["shape"] == [14, 10, 3, 5]
