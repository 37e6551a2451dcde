"""Calling a decomposition on a single op, outside of any model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankfold.decompose.base import Decomposition, Placement, Ranks
from rankfold.decompose.spectrum import Spectrum
from rankfold.errors import RankfoldError, Refused
from rankfold.ops import Chain, Conv, ConvTranspose, Embedding, Linear, Op


def decompose(method: Decomposition, op: Op, ranks: Ranks | int, placement: Placement) -> Chain:
    """The chain of one op.

    Raises:
        RankfoldError: what is given is no op, the method does not apply, a rank is out of range,
            or the weight is empty, all zero or not finite.
    """
    if not isinstance(op, (Linear, Conv, ConvTranspose, Embedding)):
        raise RankfoldError(
            f"{method.name}: {type(op).__name__} is no op; give for example rankfold.Linear(weight)"
        )
    reason = method.refuse(op)
    if reason is not None:
        raise RankfoldError(f"{method.name}: {reason}")
    if placement not in ("balanced", "classical"):
        raise RankfoldError(f"placement {placement!r}; use 'balanced' or 'classical'")
    if not isinstance(ranks, Sequence):
        raise RankfoldError(
            f"{method.name}: ranks {ranks!r}; give {len(method.max_ranks(op))} ints"
        )
    ranks = tuple(ranks)
    method.template(op, ranks)
    try:
        spectrum = Spectrum(op)
    except Refused as refused:
        raise RankfoldError(f"{method.name}: {refused.reason}") from None
    rng = np.random.default_rng(0)
    return method.decompose(op, ranks, spectrum=spectrum, placement=placement, rng=rng).chain
