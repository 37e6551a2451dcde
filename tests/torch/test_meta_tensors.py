"""Compressed models loaded into models on the meta device, as large ones are made."""

from pathlib import Path

import pytest
import torch
from torch import nn

import rankfold as rf


class Network(nn.Module):
    """Ties, buffers, a recurrent layer that lists its weights, and parameters that are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 24)
        self.wide = nn.Linear(24, 40)
        self.norm = nn.BatchNorm1d(40)
        self.cell = nn.GRU(40, 24, batch_first=True)
        self.up = nn.ConvTranspose1d(24, 26, 3)
        self.head = nn.Linear(24, 30, bias=False)
        self.head.weight = self.table.weight
        self.norm.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.cell(self.norm(self.wide(self.table(ids))))[0]
        return self.head(x) + self.up(x[..., None]).mean()


IDS = torch.arange(11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("small") / "out"
    rf.compress(Network().half().float().eval(), rf.Ratio(0.5)).save(out)
    return out


def on_meta() -> Network:
    with torch.device("meta"):
        return Network().eval()


def partly_on_meta() -> Network:
    model = Network().eval()
    model.wide, model.norm = model.wide.to("meta"), model.norm.to("meta")
    return model


@pytest.mark.parametrize("make", [on_meta, partly_on_meta])
def test_a_model_without_values_is_filled(folder: Path, make) -> None:
    empty = make()
    before = {name: p.device for name, p in empty.named_parameters()}
    loaded, expected = rf.load(empty, folder), rf.load(Network().eval(), folder)
    assert torch.equal(loaded(IDS), expected(IDS))
    assert {p.device.type for p in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}
    assert loaded.head.weight is loaded.table.weight
    for (name, new), (_, old) in zip(
        loaded.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert (new.requires_grad, new.dtype) == (old.requires_grad, old.dtype), name
    loaded(IDS).sum().backward()
    assert {name: p.device for name, p in empty.named_parameters()} == before


def test_what_is_stored_nowhere_is_named(tmp_path: Path) -> None:
    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(24, 40)
            self.register_buffer("frequencies", torch.ones(3), persistent=False)
            self.scale = torch.ones(2)

    rf.compress(Turning(), rf.Ratio(0.5)).save(tmp_path / "out")
    with torch.device("meta"):
        empty = nn.ModuleDict({"a": Turning()})["a"]
    with pytest.raises(rf.RankfoldError, match="frequencies, scale of the model: on the meta"):
        rf.load(empty, tmp_path / "out")
    empty.frequencies, empty.scale = torch.ones(3), torch.ones(2)
    assert torch.equal(rf.load(empty, tmp_path / "out").frequencies, torch.ones(3))


def test_plans_still_leave_such_layers_alone() -> None:
    plan = rf.plan(on_meta(), rf.Ratio(0.5))
    assert "meta device" in plan["wide"].reason
