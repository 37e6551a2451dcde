from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.interrupting import interrupted
from torch import nn

import rankfold as rf
from rankfold import RankfoldError
from rankfold.plan.plan import Trial


def network(dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(16 * 12, 5),
    )
    model[1].running_mean.normal_()
    model[0].weight.requires_grad_(False)
    return model.train()


BATCHES = torch.randn(64, 2, 8, 9, generator=torch.Generator().manual_seed(1)).split(16)
X = BATCHES[0][:1]


def state(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
        {name: value.clone() for name, value in model.state_dict().items()},
    ]


def assert_same(first: list[Any], second: list[Any]) -> None:
    assert first[:3] == second[:3]
    assert first[3].keys() == second[3].keys()
    assert all(torch.equal(first[3][name], second[3][name]) for name in first[3])


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, rf.Compressed]:
    model = network()
    return model, rf.compress(model, rf.Ratio(0.3), inputs=X, include="*")


@pytest.mark.parametrize("loss", ["outputs", "cross_entropy"])
def test_a_distilled_model_is_better_and_the_others_are_as_they_were(
    pair: tuple[nn.Module, rf.Compressed], loss: str
) -> None:
    model, small = pair
    before = state(model), state(small.model)
    random = torch.get_rng_state()
    better = rf.distil(small, model, BATCHES, steps=40, loss=loss)
    assert torch.equal(torch.get_rng_state(), random)
    for known, current in zip(before, (model, small.model), strict=True):
        assert_same(known, state(current))
    # Modes, flags and buffers are those of the model that was given; only parameters differ.
    after = state(better.model)
    assert after[:3] == before[1][:3]
    buffers = dict(small.model.named_buffers())
    assert all(torch.equal(after[3][name], value) for name, value in buffers.items())
    assert better.plan.layers == small.plan.layers
    assert "distilled in 40 steps" in better.plan.notes[-2 if len(better.plan.notes) > 1 else -1]
    first, last = (apart(model, m, loss) for m in (small.model, better.model))
    assert last < 0.95 * first
    assert better.plan.loss[1] == pytest.approx(last, rel=1e-4)


def apart(model: nn.Module, small: nn.Module, loss: str) -> float:
    """The loss on the held-out quarter, written out anew."""
    with torch.no_grad():
        a, b = (copy.deepcopy(m).eval()(torch.cat(BATCHES)[3::4]) for m in (model, small))
    if loss == "outputs":
        return float((a - b).square().sum() / a.square().sum())
    return float((a.softmax(1) * (a.log_softmax(1) - b.log_softmax(1))).sum(1).mean())


def test_the_same_seed_gives_the_same_model(pair: tuple[nn.Module, rf.Compressed]) -> None:
    model, small = pair
    first, second, other = (
        rf.distil(small.model, model, BATCHES, steps=12, seed=seed) for seed in (3, 3, 4)
    )
    assert isinstance(first, nn.Module)
    with torch.no_grad():
        a, b, c = (m.eval()(X) for m in (first, second, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_model_that_cannot_get_better_is_the_very_one_that_was_given() -> None:
    model = network()
    same = copy.deepcopy(model)
    assert rf.distil(same, model, BATCHES, steps=8) is same


def test_a_function_judges_what_the_outputs_are_trained_for(
    pair: tuple[nn.Module, rf.Compressed],
) -> None:
    model, small = pair
    examples = torch.cat(BATCHES)
    with torch.no_grad():
        labels = copy.deepcopy(model).eval()(examples).argmax(1)
    batches = [(examples[i : i + 16], labels[i : i + 16]) for i in range(0, 64, 16)]

    def loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, batch[1])

    better = rf.distil(small, model, batches, inputs=X, steps=40, loss=loss)
    assert better.plan.loss is not None
    unchanged = rf.distil(small, model, batches, inputs=X, steps=1, loss=loss)
    assert unchanged.plan.loss is not None
    assert better.plan.loss[1] < unchanged.plan.loss[1]


def test_an_interrupt_leaves_both_models_as_they_were(
    pair: tuple[nn.Module, rf.Compressed],
) -> None:
    model, small = pair
    before = state(model), state(small.model)

    def work() -> None:
        rf.distil(small, model, BATCHES[:1], steps=1)

    files = ("rankfold_torch/distillation.py",)
    total = interrupted(work, files)
    assert total > 60
    for line in range(1, total, 11):
        interrupted(work, files, line)
        for known, current in zip(before, (model, small.model), strict=True):
            assert_same(known, state(current))
        assert torch.is_grad_enabled()


def test_parameters_of_bfloat16_are_trained_in_full() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 6)).to(torch.bfloat16)
    batches = torch.randn(256, 12, dtype=torch.bfloat16).split(64)
    small = rf.compress(model, rf.Ranks(3)).model
    better = rf.distil(small, model, batches, steps=60)
    assert better is not small
    assert {p.dtype for p in better.parameters()} == {torch.bfloat16}


def test_tied_and_frozen_parameters_stay_tied_and_frozen() -> None:
    model = network()
    small = rf.compress(model, rf.Ratio(0.3), inputs=X)
    first = small.model[0][0].weight
    small.model[0].extra = nn.Identity()
    small.model[0].extra.register_parameter("again", first)
    better = rf.distil(small.model, model, BATCHES, steps=12)
    assert better is not small.model
    assert better[0].extra.again is better[0][0].weight
    assert not better[0][0].weight.requires_grad


def test_recurrent_layers_are_distilled_in_eval_mode() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 20)
            self.cell = nn.LSTM(20, 8, num_layers=2, dropout=0.5, batch_first=True)
            self.out = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.cell(torch.relu(self.inner(x)))[0])

    torch.manual_seed(0)
    model, batches = Network().eval(), torch.randn(32, 7, 6).split(8)
    small = rf.compress(model, rf.Ranks(2))
    better = rf.distil(small.model, model, batches, steps=24)
    assert better is not small.model
    assert better.cell.dropout == 0.5
    assert not better.cell.training


def test_a_budget_may_distil_what_it_tries_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU())
    x = torch.randn(256, 16)
    batches = x.split(64)

    def score(candidate: nn.Module) -> float:
        with torch.no_grad():
            return -float((candidate(x) - model(x)).norm() / model(x).norm())

    def first_trial(steps: int) -> tuple[rf.Compressed, Trial]:
        budget = rf.Budget(drop=0.4, evaluate=score, distil_steps=steps)
        small = rf.compress(model, budget, inputs=x[:1], calibration=batches, refit=False)
        return small, small.plan.trials[1]

    (_, plain), (small, distilled) = first_trial(0), first_trial(60)
    assert distilled.share == plain.share
    assert distilled.score > plain.score
    assert score(small.model) >= -0.4
    assert any("distilled in" in note for note in small.plan.notes)


class Unequal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3]


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("broken")


@pytest.mark.parametrize(
    ("small", "options", "message"),
    [
        (None, {"steps": 0}, "distil: steps 0; use an int from 1 on"),
        (None, {"steps": 2.0}, "distil: steps 2.0"),
        (None, {"seconds": 0}, "distil: seconds 0; use a number above 0"),
        (None, {"seed": -1}, "seed -1"),
        (None, {"loss": "entropy"}, "loss 'entropy'; use one of"),
        (None, {"batches": [torch.zeros(3, 2, 8, 9)]}, "3 examples; give at least 4"),
        (Unequal(), {}, "has no floating-point parameters"),
        (nn.Sequential(Unequal(), nn.Linear(3, 3)), {}, r"shape .*5.* original and .*3"),
        (Fails(), {}, "ValueError: broken"),
        ("small", {}, "no adapter"),
    ],
)
def test_errors_say_what_to_do(small: Any, options: dict[str, Any], message: str) -> None:
    model = network()
    batches = options.get("batches", BATCHES)
    options = {name: value for name, value in options.items() if name != "batches"}
    with pytest.raises(RankfoldError, match=message):
        rf.distil(copy.deepcopy(model) if small is None else small, model, batches, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.5, "distil_steps": 9}, "distil_steps= is for drop="),
        ({"drop": 0.1, "evaluate": len, "distil_steps": -1}, "use an int from 0 on"),
    ],
)
def test_a_budget_checks_its_steps(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RankfoldError, match=message):
        rf.Budget(**options)


def test_a_budget_that_distils_needs_data_and_a_copy() -> None:
    budget = rf.Budget(drop=0.1, evaluate=lambda model: 0.0, distil_steps=9)
    with pytest.raises(RankfoldError, match="needs calibration data; pass calibration="):
        rf.compress(network(), budget, inputs=X)
    with pytest.raises(RankfoldError, match="leave inplace= out"):
        rf.compress(network(), budget, inputs=X, calibration=BATCHES, inplace=True)
