"""`stages`: the modules of a compressed model's chains by name, for libraries that ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankfold.adapters.base import Adapter
from rankfold.adapters.capabilities import capabilities
from rankfold.errors import RankfoldError
from rankfold.pipeline.result import Compressed
from rankfold.plugins.model_lock import exclusive
from rankfold.plugins.registry import registry
from rankfold.policies.selection import Selection
from rankfold.policies.vbmf import VBMF


def stages(
    small: Any,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    adapter: Adapter | None = None,
) -> list[str]:
    """Name the stages of the chains in a compressed model, as LoRA asks for (`target_modules`).

    A layer "q_proj" that is a chain is no layer of its framework any more; its stages "q_proj.0"
    and "q_proj.1" are. Interpolative stages are left out, as they are modules of rankfold.

    Args:
        small: what `rankfold.compress` returned, or any model with chains: one that `rankfold.load`
            gave, or one that is wrapped.
        include: glob patterns of paths of compressed layers; None for all.
        exclude: glob patterns of paths of compressed layers to leave out.
        adapter: as for `rankfold.plan`.

    Returns:
        The paths in the model's order.

    Raises:
        RankfoldError: a pattern matches no compressed layer, the model has no chains, or its
            adapter names none.

    Example:
        >>> model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32))
        >>> small = rf.compress(model, rf.Ranks(8))
        >>> rf.stages(small)
        ['0.0', '0.1', '2.0', '2.1']
        >>> rf.stages(small.model, exclude="0")
        ['2.0', '2.1']
    """
    model = small.model if isinstance(small, Compressed) else small
    chains = _chains(model, adapter)
    # A selection checks and matches patterns; its policy is not asked.
    selection = Selection(VBMF(), include, exclude)
    selection.check([(path,) for path in chains])
    chosen = [names for path, names in chains.items() if not selection.left_out((path,))]
    return [name for names in chosen for name in names]


@exclusive("model")
def _chains(model: Any, adapter: Adapter | None) -> dict[str, Sequence[str]]:
    can = capabilities(adapter or registry().adapter(model))
    if can.names_stages is None:
        raise RankfoldError(f"stages: {can.name} does not name the stages of chains")
    chains = dict(can.names_stages.stages(model))
    if not chains:
        raise RankfoldError(
            "stages: the model has no compressed layer; give the result of compress, load or "
            "from_pretrained"
        )
    return chains
