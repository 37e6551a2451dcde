"""The PyTorch adapter: its declaration, which imports no framework."""

from collections.abc import Iterable

from rankfold.hookspecs import AdapterSpec, hookimpl

RANKFOLD_API = (1, 0)


@hookimpl
def rankfold_adapters() -> Iterable[AdapterSpec]:
    """Registers "torch" for every `torch.nn.Module`."""
    return (
        AdapterSpec(
            name="torch",
            model_types=("torch.nn.modules.module:Module",),
            target="rankfold_torch.adapter:TorchAdapter",
        ),
    )
