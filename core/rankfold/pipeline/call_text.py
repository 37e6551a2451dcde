"""The call that made a plan, as Python and as a command line: what of its arguments decided.

Data are left out, as no text is them; so the texts of equal plans are equal, whether moments were
gathered in the call or before it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from rankfold.faults import is_ours, shown
from rankfold.layers.settings import Settings
from rankfold.pipeline.session import INTERPOLATIVE, METHODS
from rankfold.plugins.registry import registry
from rankfold.policies.base import Policy
from rankfold.policies.from_text import text_of
from rankfold.policies.selection import Selection, listed
from rankfold.policies.validation import checked_policy

_LONGEST = 2000
"""Letters of an argument in the text of a call; a longer one is cut."""
_MODEL = "rf.compress(model, "
_COMMAND = "rankfold compress MODEL -o OUTPUT"
_CHECKPOINT = "rf.compress_checkpoint(checkpoint, output, "


def call_text(selection: Selection, settings: Settings, *, refit: bool = True) -> str:
    """Return a call of `rankfold.compress` without its data.

    Args:
        selection: the policies, and the layers that they decide on.
        settings: how layers are decomposed.
        refit: whether layers are refitted where there is calibration data.
    """
    options: dict[str, object] = {}
    if (methods := _methods(selection, settings)) is not None:
        options["methods"] = methods
    for name in ("include", "exclude"):
        patterns = listed(getattr(selection, name) or ())
        if patterns:
            options[name] = patterns[0] if len(patterns) == 1 else patterns
    arguments = [
        _policy(selection.policy),
        *(f"{n}={shown(v, _LONGEST)}" for n, v in options.items()),
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


def command_text(selection: Selection, settings: Settings, *, refit: bool = True) -> str:
    """Return the command line that decides as `call_text` does, without its data.

    Where a policy has no text, as one that holds a function, it is one that carries out the plan.
    """
    overrides = (selection.overrides or {}).items()
    texts = [text_of(policy, registry().policies) or "" for policy in selection.policies]
    if not all(texts):
        return f"{_COMMAND} --plan PLAN"
    words = ["--policy", texts[0]]
    if (methods := _methods(selection, settings)) is not None:
        words += ["--methods", ",".join(methods)]
    for name in ("include", "exclude"):
        for pattern in listed(getattr(selection, name) or ()):
            words += [f"--{name}", pattern]
    for (pattern, _), text in zip(overrides, texts[1:], strict=True):
        words += ["--override", f"{pattern}={text}"]
    if settings.placement != "balanced":
        words += ["--placement", settings.placement]
    if settings.seed:
        words += ["--seed", str(settings.seed)]
    if not refit:
        words.append("--no-refit")
    return f"{_COMMAND} {shlex.join(words)}"


def of_checkpoint(call: str) -> str:
    """Return the call of `rankfold.compress_checkpoint` that decides as one on a model does."""
    return f"{_CHECKPOINT}{call.removeprefix(_MODEL)}" if call.startswith(_MODEL) else call


def _methods(selection: Selection, settings: Settings) -> tuple[str, ...] | None:
    """Return the names of the methods; None where they are the default ones."""
    default: tuple[str, ...] = METHODS
    if checked_policy(selection.policy).allows_interpolation:
        default = (*METHODS, *INTERPOLATIVE)
    return None if tuple(settings.methods) == default else tuple(settings.methods)


def _overrides(overrides: Mapping[str, Policy]) -> str:
    pairs = (f"{pattern!r}: {_policy(policy)}" for pattern, policy in overrides.items())
    return f"{{{', '.join(pairs)}}}"


def _policy(policy: Policy) -> str:
    text = shown(policy, _LONGEST)
    return f"rf.{text}" if is_ours(policy) else text
