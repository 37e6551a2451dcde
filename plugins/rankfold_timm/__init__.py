"""Layer rules for timm, PyTorch Image Models: a plugin that uses the public plugin API alone."""

from collections.abc import Iterable

from rankfold.plugins import LayerRule, ParameterRule, Rule, hookimpl

RANKFOLD_API = (1, 1)

_LAYERS = "timm.layers"


@hookimpl
def rankfold_layer_rules() -> Iterable[Rule]:
    """Declare rules for timm's variants of `nn.Linear` and `nn.Conv2d`.

    Mixed convolutions hold such layers and need no rule. The experts of a conditional convolution,
    mixed for every image, become mixtures of fewer.
    """
    return (
        # A subclass that computes what its base computes. Rules match classes exactly, so it needs
        # one of its own; the reader is that of the stock layer.
        LayerRule("torch", f"{_LAYERS}.linear:Linear", read="rankfold_torch.layers:read"),
        LayerRule(
            "torch",
            f"{_LAYERS}.conv2d_same:Conv2dSame",
            read="rankfold_torch.layers:read_same",
        ),
        *(
            LayerRule(
                "torch",
                f"{_LAYERS}.std_conv:{name}",
                read="rankfold_timm.standardised:read",
                folds="weight standardisation",
            )
            for name in ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
        ),
        ParameterRule("torch", f"{_LAYERS}.cond_conv2d:CondConv2d", ("weight",)),
    )
