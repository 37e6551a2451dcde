"""The versions of JAX and Flax that the adapters work with, and what they need of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax
import jax

from rankfold.errors import RankfoldError
from rankfold.state.restoration import Restored

if not hasattr(jax, "make_user_context"):
    raise RankfoldError(
        f"jax {jax.__version__} is too old for rankfold: it has no jax.make_user_context, without "
        "which traces compiled before a compression would silently ignore it; install jax 0.8 or "
        f"newer (flax is {flax.__version__})"
    )

_context: Any = jax.make_user_context(default_value=None)  # type: ignore[no-untyped-call]  # JAX leaves it so
"""Part of the key of every cache of traces: what replaces layers while a function is traced."""


@contextmanager
def replacements(what: object) -> Iterator[None]:
    """Inside, this replaces or records layers while functions are traced, in this thread."""
    with Restored(thread_state()), _context(what):
        yield


def thread_state() -> Callable[[], object]:
    """A function that puts back what replaces layers in this thread, as it is now."""
    before = _context.value

    def undo() -> None:
        if _context.value is not before:
            _context(before).__enter__()  # sets it; what it would put back is of no interest

    return undo
