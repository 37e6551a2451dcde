"""Selecting layers by glob patterns on their paths.

`*` matches any run of characters, dots included; `?` one; `[ab]` one of a set. A path always
matches itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from rankfold.errors import RankfoldError

_SHOWN = 8


def matches(pattern: str, paths: Iterable[str]) -> bool:
    """Whether any of a layer's paths (a shared layer has several) fits the pattern."""
    return any(path == pattern or fnmatchcase(path, pattern) for path in paths)


def check_patterns(what: str, patterns: Iterable[str], layers: Sequence[Sequence[str]]) -> None:
    """Sees to it that every pattern matches a layer.

    Args:
        what: where the patterns come from, for the message.
        patterns: glob patterns.
        layers: the paths of each layer.

    Raises:
        RankfoldError: naming the pattern and some of the layers there are.
    """
    for pattern in patterns:
        if not any(matches(pattern, paths) for paths in layers):
            shown = ", ".join(paths[0] for paths in layers[:_SHOWN]) or "none"
            more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
            raise RankfoldError(
                f"{what}: pattern {pattern!r} matches no layer; the layers are {shown}{more}"
            )
