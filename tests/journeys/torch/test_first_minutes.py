"""What a first call stumbles over, and what it is told."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import rankfold as rf


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(200, 24)
        self.lstm = nn.LSTM(24, 40, batch_first=True)
        self.head = nn.Linear(40, 9)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.lstm(self.table(tokens))[0])
        return outputs


@pytest.mark.parametrize("limit", ["params", "macs"])
def test_a_budget_that_cannot_be_kept_names_what_is_never_replaced(limit: str) -> None:
    tokens = torch.zeros(1, 7, dtype=torch.long)
    with pytest.raises(rf.RankfoldError, match=r"'lstm' \(recurrent weights are"):
        rf.plan(Tagger(), f"budget:{limit}=0.01", inputs=tokens)


def test_a_model_that_gets_dearer_says_so_and_what_to_do() -> None:
    plan = rf.plan(Tagger(), rf.Energy(0.5), inputs=torch.zeros(1, 7, dtype=torch.long))
    assert plan.macs is not None
    before, after = plan.macs
    assert before < after
    assert "MACs grow: factors of a look-up table" in str(plan).replace("\n", " ")


def test_a_model_of_another_size_is_not_blamed_on_the_compression(tmp_path: Path) -> None:
    def model(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(20, width), nn.Linear(width, 30))

    rf.compress(model(16), rf.Ranks(3)).save(tmp_path)
    with pytest.raises(rf.RankfoldError, match="of the architecture and the size") as raised:
        rf.load(model(17), tmp_path)
    assert "exclude=" not in str(raised.value)


def test_gradients_that_vanish_leave_layers_alone_and_end_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(110)))
    batches = [torch.randn(16, 24)]
    plan = rf.plan(model, rf.Budget(macs=0.8), inputs=batches[0][:1], calibration=batches)
    assert plan.replaced
    assert any("its gradients vanish" in layer.reason for layer in plan.layers)


# A part of what torch.jit.save and torch.export.save write, and torch.save does not.
@pytest.mark.parametrize("part", ["constants.pkl", "models/model.json"])
def test_a_file_of_a_program_is_named_as_one(part: str, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"0" * 99)
        archive.writestr(f"model/{part}", b"0" * 99)
    with pytest.raises(rf.RankfoldError, match="which is not run; load it with torch"):
        rf.compress_checkpoint(file, tmp_path / "out", rf.Ranks(3))
