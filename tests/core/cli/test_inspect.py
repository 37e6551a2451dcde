"""What each method would save, by every policy."""

from pathlib import Path

import numpy as np
import pytest
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
