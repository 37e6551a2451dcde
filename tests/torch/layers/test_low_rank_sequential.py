"""What the replacement of a layer tells of the layer, and what it refuses to be told."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold_torch.layers.low_rank_sequential import LowRankSequential

QUIET = ("ignore:`torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")


def model() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(13, 8),
        nn.Unflatten(1, (4, 2)),
        nn.Flatten(2),
        nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.ConvTranspose1d(6, 10, 3, stride=2),
        nn.Linear(17, 7),
    )


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    original = model()
    small = rf.compress(original, rf.Ranks(2), methods=("svd", "tucker2")).model
    return original, small


LAYERS = (0, 3, 4, 5)


@pytest.mark.parametrize("index", LAYERS)
def test_it_describes_weight_and_bias_as_the_layer_did(pair: Any, index: int) -> None:
    layer, small = (net[index] for net in pair)
    assert isinstance(small, LowRankSequential)
    for name in ("weight", "bias"):
        before, after = getattr(layer, name, None), getattr(small, name, None)
        assert (before is None) == (after is None)
        if before is not None:
            assert isinstance(after, nn.Parameter)
            assert (after.shape, after.dtype, after.ndim) == (
                before.shape,
                before.dtype,
                before.ndim,
            )
            assert (after.numel(), after.size(0)) == (before.numel(), before.size(0))
            assert after.device == before.device
            assert after.requires_grad


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda net: net,
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": lambda net: saved(net),
}


def saved(net: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(net, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("case", COPIES)
def test_what_it_tells_is_as_it_is_now(pair: Any, case: str) -> None:
    small = COPIES[case](copy.deepcopy(pair[1]))
    assert type(small[5]) is LowRankSequential
    small.to(torch.float64).requires_grad_(False)
    assert small[5].weight.dtype is torch.float64
    assert not small[5].weight.requires_grad
    assert small.to("meta")[5].weight.device.type == "meta"
    assert {"weight", "bias"}.isdisjoint(vars(small[5]))


def test_its_state_and_parameters_are_those_of_its_stages(pair: Any) -> None:
    assert list(pair[1][5].state_dict()) == ["0.weight", "1.weight", "1.bias"]
    assert [name for name, _ in pair[1][5].named_parameters()] == list(pair[1][5].state_dict())


VALUES: dict[str, Callable[[torch.Tensor], object]] = {
    "arithmetic": lambda weight: weight + 1.0,
    "reversed": lambda weight: 2.0 * weight,
    "function": lambda weight: nn.functional.linear(torch.ones(17), weight),
    "method": lambda weight: weight.abs(),
    "view": lambda weight: weight.t() + 1.0,
    "derivative": lambda weight: torch.autograd.grad(torch.ones(1).sum(), weight),
    "memory": lambda weight: weight.data_ptr(),
    "conversion": lambda weight: weight.type(torch.float64),
    "in place": lambda weight: nn.init.zeros_(weight),
    "data": lambda weight: weight.data.sum(),
    "set data": lambda weight: setattr(weight, "data", torch.ones(1)),
    "flag": lambda weight: weight.requires_grad_(False),
    "set flag": lambda weight: setattr(weight, "requires_grad", False),
    "item": lambda weight: weight[0, 0].item(),
    "array": lambda weight: weight.detach().numpy(),
    "comparison": lambda weight: weight == 0.0,
    "list": lambda weight: torch.stack([weight]),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_of_a_weight_that_is_not_there_are_an_error(pair: Any, case: str) -> None:
    with pytest.raises(rf.RankfoldError, match="of a compressed layer has no values"):
        VALUES[case](pair[1][5].weight)


TELLING: dict[str, Callable[[torch.Tensor], object]] = {
    "type": lambda weight: weight.type(),
    "strides": lambda weight: (weight.stride(), weight.is_contiguous(), weight.storage_offset()),
    "gradient": lambda weight: (weight.grad, weight.grad_fn, weight.is_leaf),
    "bytes": lambda weight: (weight.nbytes, weight.element_size() * weight.numel()),
    "kind": lambda weight: (weight.is_inference(), weight.is_shared(), weight.is_sparse_csr),
    "new": lambda weight: [weight.new_zeros(3, 5), weight.new_full((2,), 7.0)],
    "new of numbers": lambda weight: weight.new_tensor([3.0, 5.0]),
    "like": lambda weight: [torch.zeros_like(weight), torch.full_like(weight, 2.0)],
    "like of another dtype": lambda weight: torch.ones_like(weight, dtype=torch.int64),
    "promotion": lambda weight: torch.result_type(torch.ones(2, dtype=torch.float64), weight),
    "data": lambda weight: (weight.data.dtype, weight.data.shape, weight.data.requires_grad),
    "detached": lambda weight: (weight.detach().device, weight.detach().requires_grad),
    "transposed": lambda weight: (weight.T.shape, weight.t().requires_grad, len(weight.mT)),
    "transposed, without gradients": lambda weight: (
        torch.no_grad()(lambda: weight.T)().requires_grad
    ),
    "other bytes": lambda weight: (
        weight.data.view(torch.int32).dtype,
        weight.narrow(0, 1, 3).shape,
    ),
    "reshaped": lambda weight: (weight.view(-1).shape, weight.flatten().unsqueeze(0).shape),
}


@pytest.mark.parametrize("case", TELLING)
def test_it_answers_as_the_weight_did_what_needs_no_values(pair: Any, case: str) -> None:
    before, after = (TELLING[case](net[5].weight) for net in pair)
    assert type(after) is type(before)
    if case.startswith(("new", "like")):
        torch.testing.assert_close(after, before)
    else:
        assert after == before


def test_an_error_names_the_layer_to_exclude(pair: Any) -> None:
    with pytest.raises(rf.RankfoldError, match=r"weight of .* 'sum' needs: .*exclude='3'"):
        pair[1][3].weight.sum()
    with pytest.raises(rf.RankfoldError, match=r"bias of .* 'stack' needs: .*exclude='5'"):
        torch.stack([torch.ones(7), pair[1][5].bias])


SETTINGS: list[tuple[int, str, Any]] = [
    (3, "stride", (1,)),
    (3, "padding", 0),
    (3, "dilation", (2,)),
    (3, "groups", 2),
    (3, "padding_mode", "circular"),
    (3, "kernel_size", (5,)),
    (3, "in_channels", 3),
    (3, "out_channels", 3),
    (4, "output_padding", (1,)),
    (5, "in_features", 3),
    (5, "out_features", 3),
    (5, "weight", nn.Parameter(torch.ones(7, 17))),
    (5, "bias", None),
    (0, "padding_idx", 0),
    (0, "num_embeddings", 20),
]


@pytest.mark.parametrize(("index", "name", "value"), SETTINGS)
def test_what_would_have_no_effect_cannot_be_set(
    pair: Any, index: int, name: str, value: Any
) -> None:
    small = copy.deepcopy(pair[1])[index]
    with pytest.raises(rf.RankfoldError, match=f"^{name} of a compressed layer cannot be set"):
        setattr(small, name, value)


def test_other_attributes_and_the_stages_can_be_set(pair: Any) -> None:
    small = copy.deepcopy(pair[1])[3]
    small.stride = (2,)  # what it is
    small.note = "mine"
    small[1].stride = (1,)
    assert (small.note, small[1].stride) == ("mine", (1,))


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(11, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.fc.weight, torch.Tensor) and self.fc.weight.shape[0] == 7:
            x = x.to(self.fc.weight.dtype)
        return self.fc(x)


RUNS: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "compile": lambda net, x: torch.compile(net, backend="eager", fullgraph=True)(x),
    "export": lambda net, x: torch.export.export(net, (x,)).module()(x),
    "export, not strict": lambda net, x: torch.export.export(net, (x,), strict=False).module()(x),
    "trace": lambda net, x: torch.jit.trace(net, (x,))(x),
}


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("case", RUNS)
def test_a_parent_that_asks_for_a_dtype_can_be_compiled(case: str) -> None:
    small = rf.compress(Parent(), rf.Ranks(2)).model.double()
    assert type(small.fc) is LowRankSequential
    x = torch.randn(3, 11)
    torch.testing.assert_close(RUNS[case](small, x), small(x))


WITHOUT = """
import sys

class Hidden:
    def find_spec(self, name, *_):
        if name.startswith("rankfold"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Hidden())
import torch
model, x, y = torch.load(sys.argv[1], weights_only=False)
assert type(model[0]) is torch.nn.Sequential
assert torch.equal(model(x), y)
assert (model[0].weight.dtype, model[0].weight.shape) == (torch.float32, (7, 11))
assert model[0].weight.isnan().all() and "weight" not in model[0].state_dict()
"""


def test_a_saved_model_is_read_where_rankfold_is_not_installed(tmp_path: Any) -> None:
    file, x = tmp_path / "model.pt", torch.randn(3, 11)
    small = rf.compress(nn.Sequential(nn.Linear(11, 7)), rf.Ranks(2)).model
    torch.save((small, x, small(x)), file)
    subprocess.run([sys.executable, "-c", WITHOUT, str(file)], check=True)
