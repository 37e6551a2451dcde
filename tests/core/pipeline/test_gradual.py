from __future__ import annotations

import copy
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import rankfold as rf
from rankfold import RankfoldError

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
SCHEDULE = {0: rf.Budget(macs=0.7), 3: "budget:macs=0.4"}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30), nn.Linear(30, 5))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def test_a_model_in_training_shrinks_in_place() -> None:
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    gradual = rf.Gradual(SCHEDULE, inputs=X[:1], calibration=X.split(16))
    assert gradual.compressed is None
    changed, macs = [], []
    for number in range(5):
        changed.append(gradual.step(model, number, [optimizer]))
        assert gradual.compressed is not None
        assert gradual.compressed.model is model
        macs.append(gradual.compressed.plan.macs)
        trained(model, optimizer)
    assert changed == [True, False, False, True, False]
    assert macs[0][0] == macs[-1][0]  # shares are of the original
    assert macs[2][1] <= 0.7 * macs[0][0]
    assert macs[4][1] <= 0.4 * macs[0][0]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    assert model.training


def test_the_second_step_compresses_the_dense_model_of_the_first() -> None:
    model, original = network(), network()
    gradual = rf.Gradual(SCHEDULE, inputs=X[:1])
    gradual.step(model, 0)
    assert gradual.compressed is not None
    dense = copy.deepcopy(gradual.compressed).expanded(original, inputs=X[:1])
    expected = rf.compress(dense, "budget:macs=0.4", inputs=X[:1])
    gradual.step(model, 3)
    with torch.no_grad():
        assert torch.equal(model(X), expected.model(X))
    assert gradual.compressed.plan == expected.plan


def test_of_several_steps_that_are_due_the_last_is_carried_out() -> None:
    model = network()
    gradual = rf.Gradual({2: rf.Ratio(0.5), 4: rf.Ratio(0.3), 9: rf.Ratio(0.2)})
    assert not gradual.step(model, 1)
    assert gradual.step(model, 7)
    assert gradual.compressed is not None
    assert gradual.compressed.plan.policy == repr(rf.Ratio(0.3))
    assert gradual.step(model, 100)
    with pytest.raises(RankfoldError, match="its last step is done"):
        gradual.step(model, 5)


def test_a_compiled_model_computes_what_is_inside_it() -> None:
    model = network()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    gradual = rf.Gradual(SCHEDULE, inputs=X[:1])
    with torch.no_grad():
        before = compiled(X)
        for number in (0, 3):
            gradual.step(model, number)
            assert torch.equal(compiled(X), model(X))
        assert not torch.equal(compiled(X), before)
    assert rf.stages(compiled)[0] == "_orig_mod.0.0"


def test_a_saved_model_is_loaded(tmp_path: Any) -> None:
    model = network()
    gradual = rf.Gradual(SCHEDULE, inputs=X[:1])
    for number in (0, 3):
        gradual.step(model, number)
    assert gradual.compressed is not None
    gradual.compressed.save(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(rf.load(network(), tmp_path / "small")(X), model(X))


def test_a_failing_step_leaves_a_dense_model_in_its_optimizer() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradual = rf.Gradual({0: rf.Ratio(0.3), 1: rf.Budget(macs=0.001)}, inputs=X[:1])
    gradual.step(model, 0, [optimizer])
    with torch.no_grad():
        before = model(X)
    with pytest.raises(RankfoldError, match="cannot be kept"):
        gradual.step(model, 1, [optimizer])
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.Linear]
    torch.testing.assert_close(model(X), before)
    assert gradual.compressed is None
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize(
    "number",
    ["a", "1", None, float("nan"), torch.ones(2), network()],
    ids=lambda n: type(n).__name__,
)
def test_what_is_no_number_is_named(number: Any) -> None:
    with pytest.raises(RankfoldError, match=r"(?s)step .*; give the number of the training step"):
        rf.Gradual(SCHEDULE).step(network(), number)


@pytest.mark.parametrize("number", [0, 0.5, np.int64(2), torch.tensor(1), jnp.asarray(1)])
def test_numbers_of_any_library_count(number: Any) -> None:
    model = network()
    gradual = rf.Gradual({0: rf.Ratio(0.3), 3: rf.Ratio(0.2)})
    assert gradual.step(model, number)
    assert not gradual.step(model, number)


def test_a_single_optimizer_needs_no_list() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert rf.Gradual({0: rf.Ratio(0.3)}).step(model, 0, optimizer)
    assert [*map(id, optimizer.param_groups[0]["params"])] == [*map(id, model.parameters())]
    with pytest.raises(RankfoldError, match=r"a int is no torch.optim.Optimizer"):
        rf.Gradual(SCHEDULE).step(network(), 0, 3)


def test_iterators_serve_every_step() -> None:
    def plans(calibration: Any, include: Any) -> list[Any]:
        model, listed = network(), []
        gradual = rf.Gradual(SCHEDULE, inputs=X[:1], calibration=calibration, include=include)
        for number in (0, 3):
            gradual.step(model, number)
            assert gradual.compressed is not None
            listed.append(gradual.compressed.plan)
        return listed

    batches = X.split(16)
    assert plans(iter(batches), iter(["0", "2"])) == plans(batches, ["0", "2"])


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ({}, {}, "give a mapping"),
        ([rf.Ratio(0.3)], {}, "give a mapping"),
        ({-1: rf.Ratio(0.3)}, {}, "step -1; use a whole number"),
        ({0.5: rf.Ratio(0.3)}, {}, "step 0.5; use a whole number"),
        ({0: "half"}, {}, "half"),
        ({0: rf.Ratio(0.3)}, {"input": X}, "no option 'input'; use those of compress"),
        ({0: rf.Ratio(0.3)}, {"inplace": True}, "no option 'inplace'"),
    ],
)
def test_a_wrong_schedule_is_named_at_once(
    schedule: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RankfoldError, match=message):
        rf.Gradual(schedule, **options)


def test_a_second_model_is_refused() -> None:
    gradual = rf.Gradual(SCHEDULE, inputs=X[:1])
    gradual.step(network(), 0)
    with pytest.raises(RankfoldError, match="another Sequential than at step 0"):
        gradual.step(network(), 3)


def test_nnx_models_shrink_in_place_and_their_optimizers_are_made_anew() -> None:
    model = nnx.Sequential(
        nnx.Linear(12, 40, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(40, 30, rngs=nnx.Rngs(1))
    )
    x = jnp.asarray(X.numpy())
    gradual = rf.Gradual(SCHEDULE, inputs=x[:1])
    with pytest.raises(RankfoldError, match="does not change optimizers; make them anew"):
        gradual.step(model, 0, [object()])
    assert gradual.step(model, 0)
    before = np.asarray(model(x))
    assert gradual.step(model, 3)
    assert gradual.compressed is not None
    costs = gradual.compressed.plan.macs
    assert costs is not None
    assert costs[1] <= 0.4 * costs[0] == 0.4 * (12 * 40 + 40 * 30)
    assert not np.array_equal(model(x), before)


def test_a_framework_without_changes_in_place_is_named() -> None:
    bound = linen.Dense(30).bind({"params": {"kernel": jnp.ones((12, 30)), "bias": jnp.ones(30)}})
    with pytest.raises(RankfoldError, match=r"LinenAdapter cannot change models in place; .*anded"):
        rf.Gradual(SCHEDULE).step(bound, 0)
