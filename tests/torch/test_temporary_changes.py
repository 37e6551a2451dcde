"""Hooks, modes and values held on a model for a while."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rankfold as rf
from rankfold_torch.temporary_changes import (
    ABSENT,
    Hook,
    dispatched,
    exchanged,
    hooked,
    put,
    recurrent_differentiable,
)
from rankfold_torch.torch_internals import forward_hooks, read_mode_flags

SIZE = 12


class CopiesAPart(nn.Module):
    """Copies a layer when it runs, as models with a slowly following target do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.cache: dict[str, Any] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.cache:
            self.cache["target"] = copy.deepcopy(self.a)
        self.cache["target"](x)
        return self.b(self.a(x).relu())


def test_a_part_that_is_copied_while_the_model_runs_has_no_hooks_at_work() -> None:
    model, x = CopiesAPart().eval(), torch.randn(16, SIZE)
    wanted = copy.deepcopy(model)(x)
    for _ in range(3):
        small = rf.compress(model, rf.Ranks("full"), inputs=x, calibration=[x])
    assert small.plan["b"].method == "svd"
    assert not model.cache
    torch.testing.assert_close(small.model(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda hook: pickle.loads(pickle.dumps(hook))]
)
def test_a_copy_of_a_hook_does_nothing(copied: Any) -> None:
    calls: list[int] = []
    hook = Hook(calls.append)
    assert copied(hook)(1, key=2) is None
    hook(3)
    assert calls == [3]


def test_hooks_are_told_of_a_forward_that_fails_and_leave_those_of_others() -> None:
    layer, events = nn.Linear(5, 3), []
    layer.register_forward_pre_hook(lambda module, args: None)
    theirs = forward_hooks(layer)
    before = Hook(lambda module, args, options: events.append("before"))
    after = Hook(lambda module, args, options, output: events.append("after"))
    with hooked([(layer, before, after), (layer, None, after)]):
        with pytest.raises(RuntimeError, match="shapes"):
            layer(torch.ones(2, 4))
        assert events == ["before", "after", "after"]
    assert forward_hooks(layer) == theirs


def test_values_of_dictionaries_are_exchanged_until_the_end() -> None:
    known: dict[str, Any] = {"a": 1, "b": 2}
    places = [(known, "a"), (known, "b"), (known, "new")]
    with exchanged(places, [5, ABSENT, 7]):
        assert known == {"a": 5, "new": 7}
        put(places, [ABSENT, 8, 9])
        assert known == {"b": 8, "new": 9}
    assert known == {"a": 1, "b": 2}


def test_recurrent_layers_train_inside_without_dropout() -> None:
    model = nn.ModuleList([nn.GRU(5, 3, 2, dropout=0.4), nn.Dropout(0.3)]).eval()
    recurrent, other = model
    with recurrent_differentiable(model):
        # The mode is put back by `unchanged`, in which this stands.
        assert (recurrent.training, recurrent.dropout) == (True, 0.0)
        assert (other.training, other.p) == (False, 0.3)
    assert recurrent.dropout == 0.4


def test_modes_left_in_another_order_leave_no_flag_behind() -> None:
    class Quiet(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return function(*args, **(kwargs or {}))

    flags = read_mode_flags()
    first, second = dispatched(Quiet()), dispatched(Quiet())
    first.__enter__()
    second.__enter__()
    assert read_mode_flags() != flags
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert read_mode_flags() == flags
