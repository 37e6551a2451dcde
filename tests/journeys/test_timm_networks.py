"""Networks of timm, where it is installed: it is no dependency, for it needs torchvision."""

import warnings

import pytest
import torch
from torch import nn

import rankfold as rf


@pytest.fixture(params=["test_nfnet", "test_efficientnet", "tf_mobilenetv3_small_minimal_100"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import timm
    except (ImportError, RuntimeError) as error:  # no timm, or a torchvision for another PyTorch
        pytest.skip(f"timm cannot be imported: {error}")
    made: nn.Module = timm.create_model(request.param, num_classes=17).eval()
    return made


def test_full_rank_reproduces_a_network(network: nn.Module) -> None:
    x = torch.randn(1, 3, 67, 64)
    small = rf.compress(network, rf.Ranks("full"), inputs=x)
    left = [layer for layer in small.plan.layers if layer.method is None]
    assert {layer.reason for layer in left} <= {"the weight is all zero"}
    with torch.no_grad():
        torch.testing.assert_close(small.model(x), network(x), rtol=1e-4, atol=1e-5)
