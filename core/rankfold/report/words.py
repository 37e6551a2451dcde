"""The words of the page: what methods and terms mean, in a sentence each."""

from __future__ import annotations

from rankfold.report.facts import PlanFacts

_METHODS = {
    "svd": (
        "Truncated SVD",
        "Two layers in place of one: the first goes down to as many channels as the rank, the "
        "second up to the outputs.",
    ),
    "channel_svd": (
        "Channel SVD",
        "A convolution of the same kernel to as many channels as the rank, then a 1×1 convolution "
        "up to the outputs.",
    ),
    "spatial_svd": (
        "Spatial SVD",
        "Two convolutions in a row, one along each side of the kernel, with as many channels "
        "between them as the rank.",
    ),
    "tucker2": (
        "Tucker-2",
        "Three convolutions: 1×1 down to the second rank, a small one of the same kernel to the "
        "first rank, and 1×1 up to the outputs.",
    ),
    "cp": (
        "CP",
        "A sum of as many terms of rank 1 as the rank: 1×1, one thin convolution along each side "
        "of the kernel, and 1×1.",
    ),
    "cp3": (
        "CP of three stages",
        "A sum of as many terms of rank 1 as the rank: 1×1, one convolution for each channel, and "
        "1×1.",
    ),
}
_INTERPOLATIVE = (
    "The same, with a first or last layer that passes some channels on as they are and stores less."
)


_LAYER = ("Layer", "A matrix or a convolution with its weights, under its path in the model.")
_RANK = (
    "Rank",
    "How many channels are left between the layers that take a layer's place. More cost more and "
    "lose less.",
)
_ERROR = (
    "Error",
    "How far the small layer is from the original, relative to its size: at 0.03 the difference "
    "has 3 % of the size of the original, at 1 it is as large. The error of the weight looks at "
    "the numbers of the layer alone.",
)
_INFORMED = (
    "Predicted, measured",
    "The error of the layer's output on the calibration data: predicted from their moments, and "
    "measured in a run of the compressed model beside the original, where it holds what the layers "
    "before it lose as well. Beside a small one the error of the weight may be large and do no "
    "harm: what is given up is what the data do not use.",
)
_MACS = (
    "Multiply-accumulates",
    "Products that one pass on the example inputs adds up: what takes the time in theory. Small "
    "layers, and memory, make real times differ.",
)
_SPECTRUM = (
    (
        "Spectrum",
        "The singular values of a weight, largest first: how much each further rank adds. Where "
        "the line falls steeply a low rank keeps nearly everything. Where it is flat, every rank "
        "that is cut costs as much as the last.",
    ),
    (
        "EVBMF",
        "An estimate of the rank at which structure ends and noise begins. With ≈ it rests on the "
        "values that the plan keeps. The rank that was chosen may be another, also under VBMF: at "
        "equal cost the method with the least error is taken.",
    ),
    ("Energy", "The sum of the squared singular values up to a rank, as a share of all of them."),
)


def method_name(method: str) -> str:
    """Return the name of a method for readers; that of a plugin's as it is."""
    plain = method.removesuffix("_id")
    name = _METHODS[plain][0] if plain in _METHODS else method
    return f"{name}, interpolative" if plain in _METHODS and plain != method else name


def meanings(plan: PlanFacts, *, informed: bool) -> list[tuple[str, str]]:
    """Return the words that a plan takes to be read, each with its meaning.

    Args:
        plan: the plan.
        informed: whether there are errors of outputs.
    """
    words = [_LAYER, *_method_meanings(plan), _RANK, _ERROR]
    if informed:
        words.append(_INFORMED)
    if plan.macs is not None:
        words.append(_MACS)
    return words


def spectrum_meanings(plan: PlanFacts) -> list[tuple[str, str]]:
    """Return the words that the spectra of a plan take, where it has any."""
    return list(_SPECTRUM) if any(layer.spectra for layer in plan.layers) else []


def _method_meanings(plan: PlanFacts) -> list[tuple[str, str]]:
    meanings: dict[str, str] = {}
    for method in sorted({layer.method for layer in plan.replaced if layer.method is not None}):
        plain = method.removesuffix("_id")
        if plain in _METHODS:
            name, meaning = _METHODS[plain]
            meanings[name] = meaning
            if plain != method:
                meanings[method_name(method)] = _INTERPOLATIVE
    return list(meanings.items())
