"""Networks of timm, where it is installed: it is no dependency, for it needs torchvision."""

import warnings

import pytest
import torch
from torch import nn

import rankfold as rf

NAMES = [
    *("test_nfnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100"),
    "tf_efficientnet_cc_b0_4e",
]


def created(name: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import timm
    except (ImportError, RuntimeError) as error:  # no timm, or a torchvision for another PyTorch
        pytest.skip(f"timm cannot be imported: {error}")
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, num_classes=17).eval()
    return network


@pytest.fixture(params=NAMES)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return created(request.param)


def test_full_rank_reproduces_a_network(network: nn.Module) -> None:
    x = torch.randn(1, 3, 67, 64)
    small = rf.compress(network, rf.Ranks("full"), inputs=x)
    left = [layer for layer in small.plan.layers if layer.method is None]
    assert {layer.reason for layer in left} <= {"the weight is all zero"}
    with torch.no_grad():
        torch.testing.assert_close(small.model(x), network(x), rtol=1e-4, atol=1e-5)


def test_the_experts_of_a_conditional_convolution_become_fewer() -> None:
    network, path = created("tf_efficientnet_cc_b0_4e"), "blocks.5.0.conv_dw"
    layer = network.get_submodule(path)
    assert isinstance(layer, nn.Module)
    small = rf.compress(network, rf.Ranks(2), inputs=torch.randn(1, 3, 67, 64))
    plan = small.plan[f"{path}.weight"]
    assert plan.ranks == (2,)
    # Each of the four kernels is a mixture of two, and so is what is mixed of them for an image.
    experts = small.model.get_submodule(path).weight
    assert experts.shape == layer.weight.shape
    assert torch.linalg.matrix_rank(experts.detach()) == 2
    factors = sum(tensor.numel() for tensor in small.model.get_submodule(path).parameters())
    assert factors == plan.params[1] < layer.weight.numel()
