"""The PyTorch adapter: its declaration, which imports no framework."""

from collections.abc import Iterable

from rankfold.contracts import TensorRule
from rankfold.hookspecs import AdapterSpec, hookimpl
from rankfold_torch.stored import TORCH_TENSORS

RANKFOLD_API = (1, 0)


@hookimpl
def rankfold_adapters() -> Iterable[AdapterSpec]:
    """Registers "torch" for every `torch.nn.Module`."""
    return (
        AdapterSpec(
            name="torch",
            model_types=("torch.nn.modules.module:Module",),
            target="rankfold_torch.adapter:TorchAdapter",
            readers=tuple(
                (suffix, "rankfold_torch.pickled:Pickled") for suffix in (".pt", ".pth", ".bin")
            ),
        ),
    )


@hookimpl
def rankfold_layer_rules() -> Iterable[TensorRule]:
    """How layers lie in a checkpoint."""
    return (TORCH_TENSORS,)
