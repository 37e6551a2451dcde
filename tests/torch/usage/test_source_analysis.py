"""Layers that something besides their own forward depends on: left alone, with the reason."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rankfold as rf

Untouched = Callable[[nn.Module], AbstractContextManager[None]]
QUIET = (
    "ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning",
    "ignore:`torch.jit.script:DeprecationWarning",
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
)


class Parent(nn.Module):
    """A parent of one Linear, to be given a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(11, 7)


class ReadsDtype(Parent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.to(self.fc.weight.dtype))


class ReadsBias(Parent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) - self.fc.bias


class ReadsInAMethod(Parent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.fc.weight)


class ReadsInAProperty(Parent):
    @property
    def scale(self) -> torch.Tensor:
        return self.fc.weight.abs().max()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) / self.scale


class ReadsThroughAName(Parent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.fc
        return F.linear(x, layer.weight)


class ReadsInALoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.ModuleList([nn.Linear(11, 7), nn.Linear(11, 5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = []
        for layer in self.fc:
            total.append(F.linear(x, layer.weight))
        return torch.cat(total, -1)


class ReadsInAnEnumeration(ReadsInALoop):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = []
        for _, layer in enumerate(self.fc):
            total.append(F.linear(x, layer.weight))
        return torch.cat(total, -1)


class ReadsInAComprehension(ReadsInALoop):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.linear(x, layer.weight) for layer in self.fc], -1)


class Inherits(ReadsBias):
    """Finds its forward in the base class."""


class CallsTheBase(ReadsBias):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


class ReadsByIndex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(11, 7), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.fc[0].weight)


class Scaled(nn.Linear):
    """Computes what a Linear computes and carries an attribute of its own."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = 3.0


class ReadsAnAttributeOfItsOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = Scaled(11, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.fc.scale


class AsksForTheClass(nn.Module):
    """Treats Linear layers differently from all others."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Linear(11, 7), nn.Tanh(), nn.Linear(7, 5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
            if isinstance(step, nn.Linear):
                x = x.relu()
        return x


class AsksForTheClassOfAWeight(Parent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if type(self.fc.weight) is nn.Parameter else x


class AsksAWeightForItsClass(Parent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * (1 if self.fc.weight.__class__ is nn.Parameter else 2)


class CollectsInAComprehension(Parent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = {name[3:]: weight for name, weight in self.named_parameters()}
        return self.fc(x) * weights["weight"].norm()


class SetsStride(nn.Module):
    """Changes a constant of its layer in some way."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv1d(1, 7, 3)

    def set(self) -> None:
        vars(self.fc).update(stride=(2,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.set()
        return self.fc(x[:, None])


class SetsStrideByItem(SetsStride):
    def set(self) -> None:
        self.fc.__dict__["stride"] = (2,)


class SetsStrideByUnion(SetsStride):
    def set(self) -> None:
        self.fc.__dict__ |= {"stride": (2,)}


def helper(layer: nn.Module) -> torch.Tensor:
    return layer.weight.abs().max()


class ReadsInAHelper(Parent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) / helper(self.fc)


class ReadsInAHelperBesideAMatrix(ReadsInAHelper):
    """The parent has a matrix of its own, so it is itself a module with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, 11))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.position[0])


READERS = [
    ReadsDtype,
    ReadsBias,
    ReadsInAMethod,
    ReadsInAProperty,
    ReadsThroughAName,
    ReadsInALoop,
    ReadsInAnEnumeration,
    ReadsInAComprehension,
    Inherits,
    CallsTheBase,
    ReadsByIndex,
    ReadsAnAttributeOfItsOwn,
    AsksForTheClassOfAWeight,
    AsksAWeightForItsClass,
    CollectsInAComprehension,
    SetsStride,
    SetsStrideByItem,
    SetsStrideByUnion,
]
BEHIND_A_CALL = [ReadsInAHelper, ReadsInAHelperBesideAMatrix]


@pytest.mark.parametrize("cls", READERS)
def test_a_parent_that_reads_into_a_layer_goes_on_working_without_inputs(
    cls: type[nn.Module], distance: Callable[..., float]
) -> None:
    model, x = cls(), torch.randn(3, 11)
    small = rf.compress(model, rf.Ranks("full")).model
    assert distance(small(x), model(x)) < 1e-5


@pytest.mark.parametrize("cls", [*READERS, *BEHIND_A_CALL])
def test_a_parent_that_reads_into_a_layer_goes_on_working_with_inputs(
    cls: type[nn.Module], distance: Callable[..., float]
) -> None:
    model, x = cls(), torch.randn(3, 11)
    small = rf.compress(model, rf.Ranks("full"), inputs=x).model
    assert distance(small(x), model(x)) < 1e-5


@pytest.mark.parametrize(
    ("cls", "path", "reason"),
    [
        (ReadsBias, "fc", "its bias is read by ReadsBias.forward"),
        (ReadsInAMethod, "fc", "its weight is read by ReadsInAMethod.forward"),
        (ReadsInAProperty, "fc", "its weight is read by ReadsInAProperty.forward"),
        (ReadsThroughAName, "fc", "its weight is read by ReadsThroughAName.forward"),
        (ReadsInALoop, "fc.1", "its weight is read by ReadsInALoop.forward"),
        (ReadsByIndex, "fc.0", "its weight is read by ReadsByIndex.forward"),
        (Inherits, "fc", "its bias is read by Inherits.forward"),
    ],
)
def test_a_read_is_found_in_the_source(cls: type[nn.Module], path: str, reason: str) -> None:
    assert rf.plan(cls(), rf.Ranks(2))[path].reason == reason


@pytest.mark.parametrize("cls", BEHIND_A_CALL)
def test_a_read_behind_a_call_is_found_on_inputs(cls: type[nn.Module]) -> None:
    plan = rf.plan(cls(), rf.Ranks(2), inputs=torch.randn(3, 11))
    assert plan["fc"].reason == "its weight is read from outside the layer"


@pytest.mark.parametrize("traced", [True, False])
def test_a_parent_that_asks_for_the_class_of_a_layer_computes_the_same(
    traced: bool, distance: Callable[..., float]
) -> None:
    model, x = AsksForTheClass(), torch.randn(3, 11)
    small = rf.compress(model, rf.Ranks("full"), inputs=x if traced else None).model
    assert distance(small(x), model(x)) < 1e-5


class ReadsConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(11, 7)
        self.conv = nn.Conv1d(7, 5, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x.reshape(-1, self.fc.in_features))
        y = y.reshape(1, -1, self.fc.out_features).transpose(1, 2)
        return self.conv(y)[..., :: self.conv.stride[0]]


@pytest.mark.parametrize("traced", [True, False])
def test_a_layer_whose_constants_are_read_is_replaced(traced: bool) -> None:
    x = torch.randn(4, 55)
    plan = rf.plan(ReadsConstants(), rf.Ranks(2), inputs=x if traced else None)
    assert [layer.reason for layer in plan.layers if layer.method is None] == []


def test_a_parent_that_reads_constants_goes_on_working(distance: Callable[..., float]) -> None:
    model, x = ReadsConstants(), torch.randn(4, 55)
    assert distance(rf.compress(model, rf.Ranks("full")).model(x), model(x)) < 1e-5


class CallsWithOutputSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(7, 5, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x, output_size=(14, 12))


class CallsWithOutputSizeThroughOptions(CallsWithOutputSize):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        options = {"output_size": (14, 12)}
        return self.up(x, **options)


@pytest.mark.parametrize("cls", [CallsWithOutputSize, CallsWithOutputSizeThroughOptions])
@pytest.mark.parametrize("traced", [True, False])
def test_a_layer_called_with_more_than_its_input_is_left_alone(
    cls: type[nn.Module], traced: bool
) -> None:
    plan = rf.plan(cls(), rf.Ranks(2), inputs=torch.randn(2, 7, 6, 5) if traced else None)
    assert plan["up"].reason.startswith("it is called with more than its input")


def test_a_layer_called_with_its_input_by_keyword_is_replaced() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(11, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(input=x)

    small = rf.compress(Parent(), rf.Ranks(2), inputs=torch.randn(3, 11))
    assert small.plan["fc"].method == "svd"
    assert small.model(torch.randn(3, 11)).shape == (3, 7)


@pytest.mark.parametrize("options", [{}, {"kdim": 7, "vdim": 5}], ids=["packed", "separate"])
def test_attention_owns_its_output_projection(options: dict[str, int]) -> None:
    model = nn.MultiheadAttention(12, 3, batch_first=True, **options)
    plan = rf.plan(model, rf.Ranks(2))
    assert plan["out_proj"].reason == (
        "owned by nn.MultiheadAttention, which reads its weight itself"
    )
    assert plan[""].reason == "owned by nn.MultiheadAttention, which reads it itself"


def encoder(training: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 4, 20, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(12, 7)).train(training)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("part", ["linear1", "linear2"])
def test_an_encoder_layer_reads_its_linear_layers(layer: int, part: str) -> None:
    reason = rf.plan(encoder(False), rf.Ranks(2))[f"0.layers.{layer}.{part}"].reason
    assert reason.startswith("its weight is read by TransformerEncoder")


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_transformer_encoder_goes_on_working(
    traced: bool, training: bool, distance: Callable[..., float]
) -> None:
    model, x = encoder(training), torch.randn(2, 5, 12)
    small = rf.compress(model, rf.Ranks("full"), inputs=x if traced else None)
    assert [layer.path for layer in small.plan.replaced] == ["1"]
    assert distance(small.model(x), model(x)) < 1e-5


@pytest.mark.parametrize("traced", [True, False])
def test_the_fast_path_of_an_encoder_layer_goes_on_working(
    traced: bool, distance: Callable[..., float]
) -> None:
    model, x = encoder(False), torch.randn(2, 5, 12)
    small = rf.compress(model, rf.Ranks("full"), inputs=x if traced else None).model
    with torch.no_grad():
        assert distance(small(x), model(x)) < 1e-5


def linear() -> nn.Linear:
    return nn.Linear(11, 7)


def hooked(register: str, *arguments: Any) -> nn.Module:
    layer = linear()
    getattr(layer, register)(lambda *anything: None, *arguments)
    return layer


class OwnForward(nn.Linear):
    """As a low-rank adapter: the weight plus a trained product."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.down = nn.Parameter(torch.randn(2, self.in_features))
        self.up = nn.Parameter(torch.randn(self.out_features, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class OwnConvForward(nn.Conv2d):
    """Standardises its weight where `nn.Conv2d.forward` hands it on."""

    def _conv_forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class OwnCall(nn.Linear):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().__call__(x)


class WithBuffer(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("scale", torch.ones(1))


class Tagged(torch.Tensor):
    """A tensor subclass that computes like any tensor."""

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> "Tagged":
        return torch.Tensor._make_subclass(cls, data)


def with_weight(weight: torch.Tensor) -> nn.Module:
    layer = linear()
    layer.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
    return layer


def with_forward() -> nn.Module:
    layer = linear()
    layer.forward = lambda x: x
    return layer


def pruned(name: str = "weight") -> nn.Module:
    return prune.l1_unstructured(linear(), name, 0.4)


def parametrized_bias() -> nn.Module:
    layer = linear()
    parametrize.register_parametrization(layer, "bias", nn.Softplus())
    return layer


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 7))


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "orthogonal": (lambda: parametrizations.orthogonal(linear()), "parametrized"),
    "new weight_norm": (lambda: parametrizations.weight_norm(linear()), "parametrized"),
    "new spectral_norm": (lambda: parametrizations.spectral_norm(linear()), "parametrized"),
    "parametrized bias": (parametrized_bias, "parametrized"),
    "old weight_norm": (lambda: nn.utils.weight_norm(linear()), "its weight is computed from"),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(linear()), "its weight is computed from"),
    "pruned weight": (pruned, "masked by pruning"),
    "pruned bias": (lambda: pruned("bias"), "masked by pruning"),
    "lazy linear": (lambda: nn.LazyLinear(7), "lazy: run the model once"),
    "lazy conv": (lambda: nn.LazyConv2d(7, 3), "lazy: run the model once"),
    "meta": (lambda: nn.Linear(11, 7, device="meta"), "its weight is on the meta device"),
    "forward hook": (lambda: hooked("register_forward_hook"), "it has hooks"),
    "forward pre-hook": (lambda: hooked("register_forward_pre_hook"), "it has hooks"),
    "backward hook": (lambda: hooked("register_full_backward_hook"), "it has hooks"),
    "backward pre-hook": (lambda: hooked("register_full_backward_pre_hook"), "it has hooks"),
    "forward of its own": (lambda: OwnForward(11, 7), "OwnForward has a forward of its own"),
    "convolution of its own": (lambda: OwnConvForward(5, 7, 3), "OwnConvForward has a"),
    "call of its own": (lambda: OwnCall(11, 7), "OwnCall has a"),
    "patched forward": (with_forward, "Linear has a forward of its own"),
    "buffer": (lambda: WithBuffer(11, 7), "it holds scale besides weight and bias"),
    "max_norm": (lambda: nn.Embedding(13, 7, max_norm=1.0), "max_norm renormalises the rows"),
    "complex": (lambda: nn.Linear(11, 7, dtype=torch.complex64), "its weight is torch.complex64"),
    "int8": (
        lambda: with_weight(torch.ones(7, 11, dtype=torch.int8)),
        "its weight is torch.int8; a float dtype is needed",
    ),
    "float8": (
        lambda: with_weight(torch.randn(7, 11).to(torch.float8_e4m3fn)),
        "its weight is torch.float8_e4m3fn; a float dtype is needed",
    ),
    "two dtypes": (lambda: with_weight(torch.randn(7, 11).half()), "different dtypes"),
    "tensor subclass": (
        lambda: with_weight(Tagged(torch.randn(7, 11))),
        "its weight is a Tagged, not a plain dense tensor",
    ),
    "sparse": (
        lambda: with_weight(torch.eye(7, 11).to_sparse()),
        "not a plain dense tensor",
    ),
    "lstm": (lambda: nn.LSTM(5, 7), "recurrent weights are not decomposed"),
    "gru": (lambda: nn.GRU(5, 7), "recurrent weights are not decomposed"),
    "lstm cell": (lambda: nn.LSTMCell(5, 7), "no rule reads a LSTMCell"),
    "bare matrix": (Bare, "no rule reads a Bare; a layer rule can teach it"),
    "bilinear": (lambda: nn.Bilinear(5, 7, 3), "no rule reads a Bilinear"),
    "embedding bag": (lambda: nn.EmbeddingBag(13, 7), "no rule reads a EmbeddingBag"),
}


left_alone = pytest.mark.parametrize("case", CASES)


def quiet(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.filterwarnings(*QUIET)(test)


@left_alone
@quiet
def test_the_plan_says_why_a_layer_is_left_alone(case: str) -> None:
    make, reason = CASES[case]
    planned = rf.plan(nn.Sequential(make(), nn.Linear(13, 5)), rf.Ranks(2))["0"]
    assert planned.method is None
    assert reason in planned.reason


@left_alone
@quiet
def test_the_layers_beside_one_that_is_left_alone_are_replaced(case: str) -> None:
    model = nn.Sequential(CASES[case][0](), nn.Linear(13, 5))
    assert rf.plan(model, rf.Ranks(2))["1"].method == "svd"


@left_alone
@quiet
def test_a_layer_left_alone_is_left_as_it_was(case: str, untouched: Untouched) -> None:
    model = nn.Sequential(CASES[case][0](), nn.Linear(13, 5))
    layer = model[0]
    with untouched(layer):
        rf.compress(model, rf.Ranks(2), inplace=True)
    assert model[0] is layer
    assert isinstance(model[1], nn.Sequential)


RUNNABLE = (
    "orthogonal",
    "new weight_norm",
    "new spectral_norm",
    "parametrized bias",
    "old weight_norm",
    "old spectral_norm",
    "pruned weight",
    "forward hook",
    "forward of its own",
    "call of its own",
    "buffer",
)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("case", RUNNABLE)
@quiet
def test_a_model_with_a_layer_left_alone_computes_the_same(
    case: str, traced: bool, distance: Callable[..., float]
) -> None:
    model = nn.Sequential(CASES[case][0](), nn.Linear(7, 5)).eval()
    x = torch.randn(3, 11)
    y = model(x)
    small = rf.compress(model, rf.Ranks("full"), inputs=x if traced else None)
    assert small.plan["1"].method == "svd"
    assert distance(small.model(x), y) < 1e-5


def test_the_copy_of_a_hooked_layer_has_its_hooks() -> None:
    model = nn.Sequential(hooked("register_forward_hook"), nn.Linear(7, 5))
    assert len(rf.compress(model, rf.Ranks(2)).model[0]._forward_hooks) == 1


def test_hooks_of_a_parent_do_not_matter() -> None:
    model = nn.Sequential(linear())
    model.register_forward_hook(lambda module, args, output: output + 1.0)
    small = rf.compress(model, rf.Ranks("full"))
    x = torch.randn(3, 11)
    assert small.plan["0"].method == "svd"
    torch.testing.assert_close(small.model(x), model(x), rtol=0, atol=1e-5)


def test_lazy_layers_that_have_run_are_replaced() -> None:
    model = nn.Sequential(nn.LazyLinear(7))
    model(torch.randn(3, 11))
    assert rf.plan(model, rf.Ranks(2))["0"].method == "svd"


def test_a_subclass_without_a_forward_of_its_own_is_replaced() -> None:
    class Plain(nn.Linear):
        """Initialises itself differently, say."""

    assert rf.plan(nn.Sequential(Plain(11, 7)), rf.Ranks(2))["0"].method == "svd"


def test_a_bare_matrix_beside_layers_does_not_hold_them_back() -> None:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(5, 11))
            self.fc = linear()

    plan = rf.plan(Embeds(), rf.Ranks(2))
    assert plan[""].reason.startswith("no rule reads a Embeds")
    assert plan["fc"].method == "svd"


def test_vectors_and_scalars_are_no_layers() -> None:
    model = nn.Sequential(nn.LayerNorm(7), nn.BatchNorm2d(5), nn.PReLU(3))
    assert rf.plan(model, rf.Ranks(2)).layers == ()


def quantized() -> nn.Module:
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear()), {nn.Linear})


def prepared() -> nn.Module:
    model = nn.Sequential(linear()).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(model)


@pytest.mark.parametrize("make", [quantized, prepared], ids=["dynamic", "quantization-aware"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_layer_is_left_alone(make: Callable[[], nn.Module]) -> None:
    plan = rf.plan(make(), rf.Ranks(2))
    assert plan["0"].reason == "quantized: compress the float model, then quantize the result"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_model_is_copied_whole() -> None:
    model = quantized()
    x = torch.randn(3, 11)
    assert torch.equal(rf.compress(model, rf.Ranks(2)).model(x), model(x))


def scripted() -> nn.Module:
    return torch.jit.script(linear())


WRAPPERS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "compiled": (
        lambda: torch.compile(linear(), backend="eager"),
        "0._orig_mod",
        "inside the OptimizedModule wrapper '0'",
    ),
    "data parallel": (
        lambda: nn.DataParallel(linear()),
        "0.module",
        "inside the DataParallel wrapper '0'",
    ),
}


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("case", WRAPPERS)
@quiet
def test_a_layer_in_a_wrapper_is_left_alone(case: str, traced: bool) -> None:
    make, path, reason = WRAPPERS[case]
    model = nn.Sequential(make(), nn.Linear(7, 5))
    plan = rf.plan(model, rf.Ranks(2), inputs=torch.randn(3, 11) if traced else None)
    assert plan[path].reason == reason
    assert plan["1"].method == "svd"


@pytest.mark.parametrize("traced", [True, False])
@quiet
def test_a_scripted_layer_is_left_alone(traced: bool) -> None:
    model = nn.Sequential(scripted(), nn.Linear(7, 5))
    plan = rf.plan(model, rf.Ranks(2), inputs=torch.randn(3, 11) if traced else None)
    assert plan["0"].method is None
    assert "RecursiveScriptModule" in plan["0"].reason
    assert plan["1"].method == "svd"


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: torch.compile(linear(), backend="eager"), "compress model._orig_mod"),
        (lambda: nn.DataParallel(linear()), "compress model.module"),
        (scripted, "compress the eager model"),
    ],
    ids=["compiled", "data parallel", "scripted"],
)
@quiet
def test_a_wrapped_model_is_an_error_with_the_remedy(
    make: Callable[[], nn.Module], remedy: str
) -> None:
    with pytest.raises(rf.RankfoldError, match=remedy):
        rf.compress(make(), rf.Ranks(2))


def test_a_layer_inside_a_parametrization_is_left_alone() -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(11, 11)

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return self.mix(weight)

    layer = linear()
    parametrize.register_parametrization(layer, "weight", Mixes())
    plan = rf.plan(nn.Sequential(layer), rf.Ranks(2))
    assert plan["0.parametrizations.weight.0.mix"].reason == "inside the parametrized module '0'"


def test_a_traced_graph_is_replaced_like_any_model(distance: Callable[..., float]) -> None:
    model = torch.fx.symbolic_trace(nn.Sequential(linear(), nn.ReLU(), nn.Linear(7, 5)))
    small = rf.compress(model, rf.Ranks("full"))
    x = torch.randn(3, 11)
    assert len(small.plan.replaced) == 2
    assert distance(small.model(x), model(x)) < 1e-5


def test_a_model_that_cannot_be_copied_is_an_error_with_the_remedy() -> None:
    model = nn.Sequential(linear())
    model.stream = (n for n in range(3))
    with pytest.raises(rf.RankfoldError, match="inplace=True"):
        rf.compress(model, rf.Ranks(2))


def test_something_that_is_no_model_is_an_error() -> None:
    with pytest.raises(rf.RankfoldError, match=r"no adapter for a model of type builtins\.list"):
        rf.plan([linear()], rf.Ranks(2))
