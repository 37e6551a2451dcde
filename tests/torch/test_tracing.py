"""Example inputs: the forms they take, what is counted, and that the model stays as it was."""

from collections import UserDict, namedtuple
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

import rankfold as rf

Untouched = Callable[[nn.Module], AbstractContextManager[None]]


class Two(nn.Module):
    """Takes two inputs, the second with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(11, 7)
        self.right = nn.Linear(5, 7)

    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        y = self.left(a)
        return y if b is None else y + self.right(b)


A, B = torch.linspace(-1, 2, 33).reshape(3, 11), torch.linspace(-2, 1, 15).reshape(3, 5)
Pair = namedtuple("Pair", ["a", "b"])
FORMS: dict[str, tuple[Any, int]] = {
    "tensor": (A, 0),
    "tuple": ((A, B), 3),
    "list": ([A, B], 3),
    "named tuple": (Pair(A, B), 3),
    "dict": ({"b": B, "a": A}, 3),
    "mapping": (UserDict({"a": A, "b": B}), 3),
    "tuple of one": ((A,), 0),
    "dict of one": ({"a": A}, 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_every_form_reach_the_model(form: str) -> None:
    inputs, calls = FORMS[form]
    plan = rf.plan(Two(), rf.Ranks(2), inputs=inputs)
    assert [layer.macs[0] for layer in plan.layers] == [3 * 11 * 7, calls * 5 * 7]


def test_what_a_tokenizer_gives_are_inputs() -> None:
    from transformers import BatchEncoding

    encoding = BatchEncoding({"a": A, "b": B})
    plan = rf.plan(Two(), rf.Ranks(2), inputs=encoding)
    assert [layer.macs[0] for layer in plan.layers] == [3 * 11 * 7, 3 * 5 * 7]


@pytest.mark.parametrize(
    "inputs",
    [torch.ones(3, 4), (A, B, B), {"a": A, "c": B}, {}, (), "text", 5],
    ids=["shape", "too many", "unknown name", "no names", "nothing", "text", "number"],
)
def test_inputs_that_the_model_fails_on_are_an_error(inputs: Any) -> None:
    with pytest.raises(rf.RankfoldError, match="inputs: the model fails on them with "):
        rf.plan(Two(), rf.Ranks(2), inputs=inputs)


def test_inputs_of_other_kinds_are_named_with_what_to_give() -> None:
    loader = torch.utils.data.DataLoader([(A, B)])
    for inputs, hint in (
        ((3, 11), r"\(3, 11\) looks like a shape"),
        ((A.numpy(), B), r"give torch\.from_numpy\(array\)"),
        (loader, "a DataLoader is among them"),
    ):
        with pytest.raises(rf.RankfoldError, match=hint):
            rf.plan(Two(), rf.Ranks(2), inputs=inputs)
    labelled = [(torch.randn(4, 11), torch.zeros(4))]
    with pytest.raises(rf.RankfoldError, match="all of its 2 items are taken as arguments"):
        rf.plan(nn.Linear(11, 7), rf.Ranks(2), calibration=labelled)


def test_the_error_names_the_cause() -> None:
    with pytest.raises(rf.RankfoldError, match=r"TypeError.*unexpected keyword argument 'c'"):
        rf.plan(Two(), rf.Ranks(2), inputs={"a": A, "c": B})


def test_inputs_that_the_model_fails_on_leave_it_as_it_was(untouched: Untouched) -> None:
    model, x = Two().train(), torch.randn(3, 4)
    with untouched(model), pytest.raises(rf.RankfoldError):
        rf.compress(model, rf.Ranks(2), inputs=x, inplace=True)


def test_a_failure_inside_a_layer_leaves_the_next_trace_intact() -> None:
    model = Two()
    with pytest.raises(rf.RankfoldError):
        rf.plan(model, rf.Ranks(2), inputs=torch.randn(3, 4))
    assert rf.plan(model, rf.Ranks(2), inputs=A)["left"].macs == (3 * 77, 3 * (22 + 14))


def test_without_inputs_there_are_no_macs() -> None:
    plan = rf.plan(Two(), rf.Ranks(2))
    assert plan.macs is None
    assert {layer.macs for layer in plan.layers} == {None}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7, momentum=None), nn.Dropout(0.5), nn.Conv2d(7, 5, 3)
    )


def test_batch_norm_statistics_are_unchanged(untouched: Untouched) -> None:
    model, x = network().train(), torch.randn(4, 3, 9, 8)
    with untouched(model[1]):
        rf.plan(model, rf.Ranks(2), inputs=x)


def test_dropout_draws_nothing_from_the_random_state(untouched: Untouched) -> None:
    model = network().train()
    x = torch.randn(4, 3, 9, 8)
    with untouched(model):
        rf.compress(model, rf.Ranks(2), inputs=x)


class Noisy(nn.Module):
    """Draws from the random state in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(11, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x + torch.randn_like(x))


def test_a_model_that_draws_in_eval_mode_leaves_the_random_state(untouched: Untouched) -> None:
    model = Noisy()
    with untouched(model):
        rf.plan(model, rf.Ranks(2), inputs=A)


class Counts(nn.Module):
    def __init__(self, update: Callable[[Any], None]) -> None:
        super().__init__()
        self.fc = nn.Linear(11, 7)
        self.register_buffer("calls", torch.zeros(3))
        self.update = update

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.update(self)
        return self.fc(x)


def add(model: Any) -> None:
    model.calls += 1


def through_data(model: Any) -> None:
    model.calls.data.add_(1)


def assign(model: Any) -> None:
    model.calls = model.calls + 1


@pytest.mark.parametrize("update", [add, through_data, assign])
def test_a_buffer_that_forward_changes_is_as_before(update: Any) -> None:
    model = Counts(update)
    values = model.calls.clone()
    rf.plan(model, rf.Ranks(2), inputs=A)
    assert torch.equal(model.calls, values)


class Repeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(11, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.fc(x[:2])) + self.fc(x[2:])


def test_a_layer_called_several_times_counts_each_time() -> None:
    plan = rf.plan(Repeats(), rf.Ranks(2), inputs=torch.randn(4, 11))
    assert plan["fc"].macs == (6 * 121, 6 * 44)


def test_a_layer_that_is_not_called_costs_nothing_and_the_plan_says_why() -> None:
    plan = rf.plan(Two(), rf.Ranks(2), inputs=A)
    assert plan["right"].macs == (0, 0)
    assert plan["right"].reason == "no call of it is counted on the example inputs"
    assert plan["left"].reason == ""


@pytest.mark.parametrize("policy", [rf.Energy(0.5), rf.Ratio(0.3)], ids=str)
def test_a_layer_that_is_not_called_is_decomposed_all_the_same(policy: Any) -> None:
    assert rf.plan(Two(), policy, inputs=A)["right"].method == "svd"


EXTENTS = {
    "linear": (lambda: nn.Linear(11, 7), (2, 3, 5, 11), 2 * 3 * 5 * 77),
    "linear without batch": (lambda: nn.Linear(11, 7), (11,), 77),
    "1-d": (lambda: nn.Conv1d(5, 7, 3), (2, 5, 13), 2 * 11 * 105),
    "1-d without batch": (lambda: nn.Conv1d(5, 7, 3), (5, 13), 11 * 105),
    "2-d": (lambda: nn.Conv2d(5, 7, 3, 2, 1), (2, 5, 13, 9), 2 * 7 * 5 * 315),
    "2-d without batch": (lambda: nn.Conv2d(5, 7, 3, 2, 1), (5, 13, 9), 7 * 5 * 315),
    "3-d": (lambda: nn.Conv3d(3, 5, 2), (2, 3, 4, 6, 5), 2 * 3 * 5 * 4 * 120),
    "same": (
        lambda: nn.Conv2d(5, 7, 3, padding="same", dilation=2),
        (2, 5, 13, 9),
        2 * 13 * 9 * 315,
    ),
    "grouped": (lambda: nn.Conv2d(6, 10, 3, groups=2), (2, 6, 13, 9), 2 * 11 * 7 * 270),
    "transposed": (lambda: nn.ConvTranspose2d(5, 7, 3, 2), (2, 5, 4, 6), 2 * 4 * 6 * 315),
    "transposed without batch": (lambda: nn.ConvTranspose2d(5, 7, 3, 2), (5, 4, 6), 4 * 6 * 315),
}


@pytest.mark.parametrize("case", EXTENTS)
def test_macs_are_counted_at_the_shapes_seen(case: str, measured_macs: Callable[..., int]) -> None:
    make, shape, macs = EXTENTS[case]
    layer, x = make(), torch.randn(shape)
    assert rf.plan(nn.Sequential(layer), rf.Ratio(0.5), inputs=x)["0"].macs[0] == macs
    assert measured_macs(layer, lambda: layer(x)) == macs


@pytest.mark.parametrize("case", EXTENTS)
@pytest.mark.parametrize("policy", [rf.Energy(0.5), rf.Ratio(0.3)], ids=str)
def test_no_layer_grows_at_the_shapes_seen(
    case: str, policy: Any, measured_macs: Callable[..., int]
) -> None:
    make, shape, macs = EXTENTS[case]
    layer, x = make(), torch.randn(shape)
    small = rf.compress(nn.Sequential(layer), policy, inputs=x).model
    assert measured_macs(small, lambda: small(x)) <= macs


def test_a_chain_that_costs_more_at_the_shapes_seen_is_not_used() -> None:
    model = nn.Sequential(nn.Conv2d(64, 32, 3, stride=4))
    x = torch.randn(1, 64, 21, 21)
    plan = rf.plan(model, rf.Ratio(0.5), inputs=x, methods="tucker2")
    assert plan["0"].reason.startswith("grew: MACs ")


def test_an_embedding_has_no_macs_and_its_chain_has() -> None:
    plan = rf.plan(nn.Embedding(17, 11), rf.Ranks(2), inputs=torch.randint(0, 17, (3, 5)))
    assert plan[""].macs == (0, 15 * 22)
    assert plan[""].reason == "adds 330 MACs: a table look-up has none"


def test_integer_inputs_of_any_shape_are_counted() -> None:
    for shape in ((), (5,), (2, 3, 5)):
        ids = torch.randint(0, 17, shape)
        plan = rf.plan(nn.Embedding(17, 11), rf.Ranks(2), inputs=ids)
        assert plan[""].macs[1] == ids.numel() * 22


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_any_dtype_is_traced(dtype: torch.dtype) -> None:
    plan = rf.plan(Two().to(dtype), rf.Ranks(2), inputs=A.to(dtype))
    assert plan["left"].macs[0] == 3 * 77


def test_the_trace_runs_in_eval_mode_without_gradients() -> None:
    seen = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(11, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return self.fc(x)

    rf.plan(Looks().train(), rf.Ranks(2), inputs=A)
    assert seen == [(False, False)]


def test_apply_counts_anew_on_its_inputs() -> None:
    model = Two()
    plan = rf.plan(model, rf.Ranks(2), inputs=A)
    applied = rf.apply(model, plan, inputs=torch.randn(5, 11)).plan
    assert applied["left"].macs == (5 * 77, 5 * (22 + 14))


def test_apply_without_inputs_keeps_the_count_of_the_plan() -> None:
    model = Two()
    plan = rf.plan(model, rf.Ranks(2), inputs=A)
    assert rf.apply(model, plan).plan.macs == plan.macs


class Then(nn.Module):
    """A part that gives 7 features, and a layer behind it."""

    def __init__(self, part: nn.Module, run: Callable[[nn.Module, torch.Tensor], Any]) -> None:
        super().__init__()
        self.part, self.run = part, run
        self.fc = nn.Linear(7, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.run(self.part, x))
        return y


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * 2)


UNCOUNTED: dict[str, tuple[Callable[[], nn.Module], Any, tuple[int, ...], list[str]]] = {
    "LSTM": (lambda: nn.LSTM(5, 7), lambda lstm, x: lstm(x)[0], (3, 2, 5), ["part"]),
    "scripted": (
        lambda: torch.jit.script(nn.Linear(5, 7)),
        lambda linear, x: linear(x),
        (3, 5),
        ["part"],
    ),
    "fused attention": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda attention, x: attention(x, x, x, need_weights=False)[0][..., :7],
        (3, 2, 8),
        ["part", "part.out_proj"],
    ),
}


@pytest.mark.parametrize("case", UNCOUNTED)
def test_what_is_not_counted_is_named(case: str) -> None:
    make, run, shape, paths = UNCOUNTED[case]
    plan = rf.plan(Then(make(), run).eval(), rf.Ranks(2), inputs=torch.randn(*shape))
    assert [layer.path for layer in plan.layers if layer.macs is None] == paths
    named = ", ".join(map(repr, paths))
    assert plan.notes == (f"MACs are those of the other layers: not counted are those of {named}",)


def test_of_many_layers_that_are_not_counted_a_few_are_named() -> None:
    model = nn.Sequential(*(torch.jit.script(nn.Linear(5, 5)) for _ in range(5)), nn.Linear(5, 6))
    (note,) = rf.plan(model, rf.Ranks(2), inputs=torch.randn(3, 5)).notes
    assert note.endswith("those of '0', '1', '2' and 2 more")


COUNTED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, int]]] = {
    "matrix that is masked": (Router, lambda router, x: router(x), {"part": 3 * 5 * 7}),
    "cell": (
        lambda: nn.LSTMCell(5, 7),
        lambda cell, x: cell(x)[0],
        {"part": 3 * (5 + 7) * 4 * 7},
    ),
    "weight read from outside": (
        lambda: nn.Linear(5, 7),
        lambda linear, x: x @ linear.weight.T,
        {"part": 3 * 5 * 7},
    ),
    "attention step by step": (
        lambda: nn.MultiheadAttention(7, 1),
        lambda attention, x: attention(*(F.pad(x, (0, 2)),) * 3)[0],
        {"part": 3 * 7 * 21, "part.out_proj": 3 * 7 * 7},
    ),
    "table that is added": (
        lambda: AddsTable(),
        lambda part, x: part(x),
        {"part": 0, "part.fc": 3 * 5 * 7},
    ),
}


class AddsTable(nn.Module):
    """A matrix that multiplies nothing beside a layer and a product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 7))
        self.fc = nn.Linear(5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.stack([self.fc(x) + self.table] * 2)
        return ((y @ y.mT).softmax(-1) @ y)[0]


@pytest.mark.parametrize("case", COUNTED)
def test_operations_by_the_matrix_of_a_layer_that_stays_are_counted(case: str) -> None:
    make, run, macs = COUNTED[case]
    plan = rf.plan(Then(make(), run), rf.Ranks(2), inputs=torch.randn(3, 5))
    assert {path: plan[path].macs[0] for path in macs} == macs
    assert plan.notes == ()
