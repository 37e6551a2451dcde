"""Selection of the layers that are considered, and by which policy: include, exclude, overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rankfold.errors import RankfoldError
from rankfold.policies.base import Policy
from rankfold.policies.validation import checked_policy


@dataclass(frozen=True)
class Selection:
    """Glob patterns on layer paths.

    Args:
        policy: for every layer without an override.
        include: patterns of the layers to consider; None for all.
        exclude: patterns of layers to leave alone.
        overrides: policies by pattern; the first match counts.

    Raises:
        RankfoldError: something that is no policy is given as one, or a policy judges what it
            cannot.
    """

    policy: Policy
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] = ()
    overrides: Mapping[str, Policy] | None = None

    def __post_init__(self) -> None:
        for name, patterns in (("include", self.include), ("exclude", self.exclude)):
            if patterns is not None:
                object.__setattr__(self, name, _patterns(name, patterns))
        if self.include is not None and not self.include:
            raise RankfoldError("include: no pattern; leave it out to consider every layer")
        if not isinstance(self.overrides or {}, Mapping):
            raise RankfoldError(
                f"overrides: {type(self.overrides).__name__}; give a mapping from patterns to "
                "policies"
            )
        if self.overrides is not None:  # looked up once: a mapping may make its policies anew
            object.__setattr__(self, "overrides", dict(self.overrides))
        for policy in self.policies:
            checked_policy(policy)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policy of the selection and those of its overrides."""
        return (self.policy, *(self.overrides or {}).values())

    def check(self, layers: Sequence[Sequence[str]]) -> None:
        """Check that every pattern matches a layer, given the paths of each.

        Raises:
            RankfoldError: naming the pattern and some of the layers there are.
        """
        check_patterns("include", listed(self.include or ()), layers)
        check_patterns("exclude", listed(self.exclude), layers)
        check_patterns("overrides", self.overrides or (), layers)

    def left_out(self, paths: Sequence[str]) -> str:
        """Return why a layer is not considered; "" where it is."""
        for pattern in listed(self.exclude):
            if matches(pattern, paths):
                return f"excluded by {pattern!r}"
        if self.include is not None and not any(matches(p, paths) for p in listed(self.include)):
            return "not included"
        return ""

    def names(self, paths: Sequence[str]) -> bool:
        """Return whether a pattern of `include` or `overrides` matches a layer."""
        patterns = (*listed(self.include or ()), *(self.overrides or ()))
        return any(matches(pattern, paths) for pattern in patterns)

    def policy_of(self, paths: Sequence[str]) -> Policy:
        """The policy that decides on a layer."""
        for pattern, policy in (self.overrides or {}).items():
            if matches(pattern, paths):
                return policy
        return self.policy


def _patterns(name: str, argument: object) -> tuple[str, ...]:
    patterns = (argument,) if isinstance(argument, str) else argument
    if isinstance(patterns, Iterable):
        texts = tuple(patterns)
        if all(isinstance(pattern, str) for pattern in texts):
            return texts
    raise RankfoldError(f"{name}: {argument!r}; give a glob pattern or several, as strings")


def listed(names: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


_SHOWN = 8


def matches(pattern: str, paths: Iterable[str]) -> bool:
    """Return whether any of a layer's paths (a shared layer has several) fits the pattern."""
    return any(path == pattern or fnmatchcase(path, pattern) for path in paths)


def check_patterns(what: str, patterns: Iterable[str], layers: Sequence[Sequence[str]]) -> None:
    """Check that every pattern matches a layer.

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
