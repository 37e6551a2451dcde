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

CALL = "_call_wrapped_method"
"""Method of a Linen module through which Flax calls all others; a compressed module has its own.
It is not public. Nothing of Flax is changed: the class of a compressed module is generated."""

_context: Any = jax.make_user_context(default_value=None)  # type: ignore[no-untyped-call]  # JAX leaves it so
"""Part of the key of every cache of traces: what replaces layers while a function is traced."""


def check_call(module: type) -> None:
    """Check that `flax.linen.Module` has the method `CALL`.

    Raises:
        RankfoldError: it has not, which is told at import and not in the middle of a compression.
    """
    if not hasattr(module, CALL):
        raise RankfoldError(
            f"flax {flax.__version__} calls the methods of Linen modules in a way that this "
            "version of rankfold does not know; install flax 0.12 or a newer rankfold"
        )


def key_implementation(dtype: Any) -> Any:
    """Return the implementation of random keys of a type, which has no public name."""
    return dtype._impl


@contextmanager
def replacements(what: object) -> Iterator[None]:
    """Replace or record layers while functions are traced within it, in this thread."""
    with Restored(thread_state()), _context(what):
        yield


def thread_state() -> Callable[[], object]:
    """A function that puts back what replaces layers in this thread, as it is now."""
    before = _context.value

    def undo() -> None:
        if _context.value is not before:
            _context(before).__enter__()  # sets it; what it would put back is of no interest

    return undo
