"""The PyTorch adapter: its declaration, which imports no framework."""

from collections.abc import Iterable

from rankfold.plugins import AdapterSpec, Demo, FileFormat, LayerRule, Rule, hookimpl
from rankfold_torch.tensor_rules import TORCH_TENSORS

RANKFOLD_API = (1, 0)


@hookimpl
def rankfold_adapters() -> Iterable[AdapterSpec]:
    """Registers "torch" for every `torch.nn.Module`."""
    return (
        AdapterSpec(
            name="torch",
            model_types=("torch.nn.modules.module:Module",),
            target="rankfold_torch.adapter:TorchAdapter",
            formats=(
                FileFormat(
                    kind="a file of torch.save()",
                    suffixes=(".pt", ".pth", ".bin"),
                    # a zip archive, or in old files a bare pickle of protocol 2 or later
                    signatures=(b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
                    read="rankfold_torch.pickle_reader:Pickled",
                    install="pip install 'rankfold[torch]'",
                ),
            ),
            demo=Demo("torch", "rankfold_torch.demo:TorchDemo", "pip install 'rankfold[demo]'"),
        ),
    )


@hookimpl
def rankfold_layer_rules() -> Iterable[Rule]:
    """How layers lie in a checkpoint, and the convolutions of this package as layers."""
    return (
        TORCH_TENSORS,
        *(
            LayerRule(
                adapter="torch",
                layer=f"rankfold_torch.layers.same_padding:SameConv{axes}d",
                read="rankfold_torch.layers:read_same",
            )
            for axes in (1, 2, 3)
        ),
    )
