"""Names of the stages of a chain in a checkpoint."""

from __future__ import annotations

from rankfold.linalg import Array
from rankfold.ops import Chain


def numbered(path: str, chain: Chain) -> dict[str, Array]:
    """Weights (out, in, *kernel) and biases of stages 0, 1 ... below a path: PyTorch's sequences.

    Args:
        path: of the layer; "" for a model that is one.
        chain: in its place.
    """
    found: dict[str, Array] = {}
    for place, stage in enumerate(chain):
        own = f"{path}.{place}" if path else str(place)
        found[f"{own}.weight"] = stage.weight
        if stage.bias is not None:
            found[f"{own}.bias"] = stage.bias
    return found
