"""The PyTorch adapter: its declaration, which imports no framework."""

from collections.abc import Iterable

from rankfold.plugins import AdapterSpec, Demo, FileFormat, LayerRule, Rule, hookimpl
from rankfold_torch.tensor_rules import TORCH_TENSORS

RANKFOLD_API = (1, 6)


@hookimpl
def rankfold_adapters() -> Iterable[AdapterSpec]:
    """Register the adapter "torch" for every `torch.nn.Module`."""
    return (
        # Types and targets are texts "module:name": this module is imported by every `import
        # rankfold`, and must not load torch.
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
                    keyed=True,
                ),
            ),
            demo=Demo("torch", "rankfold_torch.demo:TorchDemo", "pip install 'rankfold[demo]'"),
            install="pip install 'rankfold[torch]'",
            # of torch.compile, of two generations of FSDP, and of activation checkpointing
            wrapper_parts=(
                "_orig_mod",
                "_fsdp_wrapped_module",
                "_fpw_module",
                "_checkpoint_wrapped_module",
            ),
            wrapper_fronts=("module",),  # of DataParallel
        ),
    )


@hookimpl
def rankfold_layer_rules() -> Iterable[Rule]:
    """Return the rule for tensors of a checkpoint, and those for convolutions of this package."""
    return (
        TORCH_TENSORS,
        *(
            # `SameConv*d` are subclasses of stock layers with a forward of their own, which is
            # refused without a rule. With one, a model that was compressed into them can be
            # compressed again.
            LayerRule(
                adapter="torch",
                layer=f"rankfold_torch.layers.same_padding:SameConv{axes}d",
                read="rankfold_torch.layers:read_same",
            )
            for axes in (1, 2, 3)
        ),
    )
