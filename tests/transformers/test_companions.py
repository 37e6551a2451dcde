"""What goes along with compressed weights, and what stays behind."""

import json
from pathlib import Path
from typing import Any

import pytest

import rankfold as rf
from rankfold.plan.plan import LayerPlan, Plan
from rankfold_transformers.companions import beside, check_method, companions

PLAN = Plan(layers=(LayerPlan(path="a", method="svd", ranks=(3,), pivots=((0, 2, 5),)),))
GOES = ("LICENSE", "chat_template.jinja", "generation_config.json", "merges.txt")
STAYS = (
    *("README.md", "config.json", "model.safetensors", "model.safetensors.index.json"),
    *("plan.json", "pytorch_model.bin", "trainer_state.json", ".hidden.json"),
)


def test_tokenizers_and_licences_go_and_weights_stay(tmp_path: Path) -> None:
    for name in (*GOES, *STAYS):
        (tmp_path / name).write_text("content")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "config.json")
    assert list(companions(tmp_path)) == [(name, tmp_path / name) for name in sorted(GOES)]


def test_the_plan_stands_where_transformers_looks_for_a_method(tmp_path: Path) -> None:
    first = json.loads(beside(tmp_path, {"model_type": "llama"}, PLAN)["config.json"])
    assert first["quantization_config"]["quant_method"] == "rankfold"
    assert "rankfold" in first["transformers_weights"]
    [plan] = first["quantization_config"]["plans"]
    assert plan["layers"] == [{"path": "a", "method": "svd", "ranks": [3], "pivots": [[0, 2, 5]]}]
    second = json.loads(beside(tmp_path, first, PLAN)["config.json"])
    assert second["quantization_config"]["plans"] == [plan, plan]


@pytest.mark.parametrize("method", [{"quant_method": "fp8"}, "awq"])
def test_a_quantized_checkpoint_is_refused(method: Any) -> None:
    with pytest.raises(rf.RankfoldError, match=r"method '(fp8|awq)'.*save the model dequantized"):
        check_method({"quantization_config": method})
    check_method({})
