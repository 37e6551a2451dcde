"""The score of a model with one layer compressed: true scores, and nothing of the model changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, 20),
        nn.ReLU(),
        nn.Linear(20, 10),
    )


X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def closeness(to: nn.Module) -> Any:
    goal = to(X).detach()
    return lambda model: -float((model(X) - goal).square().mean().detach())


def test_each_score_is_that_of_the_model_with_one_layer_replaced() -> None:
    model = network()
    result = rf.sensitivity(model, evaluate=closeness(model), inputs=X[:1], shares=(0.5, 0.2))
    assert result.original == 0.0
    assert result.resource == "macs"
    for score in result:
        alone = rf.compress(
            model, rf.Ranks({score.path: score.ranks}), methods=[score.method], include=score.path
        )
        assert closeness(model)(alone.model) == pytest.approx(score.score, rel=1e-4)
        assert score.drop == result.original - score.score
        before, after = rf.plan(
            model,
            rf.Ranks({score.path: score.ranks}),
            methods=[score.method],
            include=score.path,
            inputs=X[:1],
        )[score.path].macs
        assert score.share == after / before <= 0.5


def test_less_of_a_layer_scores_less() -> None:
    model = network()
    result = rf.sensitivity(model, evaluate=closeness(model), inputs=X[:1])
    for path in result.most_sensitive():
        shares = [score.share for score in result.of(path)]
        scores = [score.score for score in result.of(path)]
        assert shares == sorted(shares, reverse=True)
        assert scores == sorted(scores, reverse=True)
    worst = [max(score.drop for score in result.of(p)) for p in result.most_sensitive()]
    assert worst == sorted(worst, reverse=True)


def test_the_model_stays_as_it_was() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    rf.sensitivity(model, evaluate=closeness(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model[0]) is nn.Conv2d


def test_a_score_that_changes_a_model_changes_a_copy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3)).eval()
    before = copy.deepcopy(model.state_dict())

    def score(candidate: nn.Module) -> float:
        candidate.train()(X)
        return 0.0

    rf.sensitivity(model, evaluate=score, shares=(0.5,))
    rf.compress(model, rf.Budget(drop=0.5, evaluate=score))
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_moments_that_were_gathered_are_used() -> None:
    model = network()
    moments = rf.gather(model, X.split(16))
    given = rf.sensitivity(model, evaluate=closeness(model), moments=moments)
    gathered = rf.sensitivity(model, evaluate=closeness(model), calibration=X.split(16))
    assert given.scores == gathered.scores
    plain = rf.sensitivity(model, evaluate=closeness(model))
    informed = [score.score for score in given if score.path == "5"]
    assert informed > [score.score for score in plain if score.path == "5"]


def test_layers_that_are_not_tried_have_a_reason() -> None:
    model = network()
    result = rf.sensitivity(model, evaluate=closeness(model), exclude="0", shares=(0.3, 0.001))
    assert result.left_out["0"] == "excluded by '0'"
    assert "0" not in {score.path for score in result}
    assert "not tried: '0' (excluded by '0')" in str(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shares": (0.5, 1.5)}, "sensitivity: share 1.5"),
        ({"shares": 0.5}, r"sensitivity: shares 0.5; give several"),
        ({"include": "none"}, "matches no layer"),
        ({"evaluate": lambda model: float("nan")}, "sensitivity: evaluate gave nan"),
        ({"evaluate": lambda model: {}["a"]}, "sensitivity: evaluate fails with KeyError"),
        ({"methods": ["nothing"]}, "nothing"),
    ],
)
def test_wrong_arguments_are_errors(arguments: dict[str, Any], message: str) -> None:
    model = network()
    with pytest.raises(rf.RankfoldError, match=message):
        rf.sensitivity(model, **{"evaluate": closeness(model), **arguments})
