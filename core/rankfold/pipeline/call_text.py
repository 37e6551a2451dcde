"""The call that made a plan, as text: what of its arguments decided.

Data are left out, as no text is them; so the texts of equal plans are equal, whether moments were
gathered in the call or before it.
"""

from __future__ import annotations

from collections.abc import Mapping

from rankfold.faults import is_ours, shown
from rankfold.layers.settings import Settings
from rankfold.pipeline.session import INTERPOLATIVE, METHODS
from rankfold.policies.base import Policy
from rankfold.policies.selection import Selection, listed
from rankfold.policies.validation import checked_policy

_LONGEST = 2000
_MODEL = "rf.compress(model, "
_CHECKPOINT = "rf.compress_checkpoint(checkpoint, output, "


def call_text(selection: Selection, settings: Settings, *, refit: bool = True) -> str:
    """Return a call of `rankfold.compress` without its data.

    Args:
        selection: the policies, and the layers that they decide on.
        settings: how layers are decomposed.
        refit: whether layers are refitted where there is calibration data.
    """
    given: dict[str, object] = {}
    default: tuple[str, ...] = METHODS
    if checked_policy(selection.policy).allows_interpolation:
        default = (*METHODS, *INTERPOLATIVE)
    if tuple(settings.methods) != default:
        given["methods"] = tuple(settings.methods)
    for name in ("include", "exclude"):
        patterns = listed(getattr(selection, name) or ())
        if patterns:
            given[name] = patterns[0] if len(patterns) == 1 else patterns
    arguments = [
        _policy(selection.policy),
        *(f"{n}={shown(v, _LONGEST)}" for n, v in given.items()),
    ]
    if selection.overrides:
        arguments.append(f"overrides={_overrides(selection.overrides)}")
    if settings.placement != "balanced":
        arguments.append(f"placement={settings.placement!r}")
    if settings.seed:
        arguments.append(f"seed={settings.seed}")
    if not refit:
        arguments.append("refit=False")
    return f"{_MODEL}{', '.join(arguments)})"


def of_checkpoint(call: str) -> str:
    """Return the call of `rankfold.compress_checkpoint` that decides as one on a model does."""
    return f"{_CHECKPOINT}{call.removeprefix(_MODEL)}"


def _overrides(overrides: Mapping[str, Policy]) -> str:
    pairs = (f"{pattern!r}: {_policy(policy)}" for pattern, policy in overrides.items())
    return f"{{{', '.join(pairs)}}}"


def _policy(policy: Policy) -> str:
    text = shown(policy, _LONGEST)
    return f"rf.{text}" if is_ours(policy) else text
