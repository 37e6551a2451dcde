"""Executors by name, as the command line gives them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from rankfold.errors import RankfoldError

_DASK = "dask://"
_PATIENCE = 10  # seconds


@contextmanager
def opened(text: str | None) -> Iterator[Executor | None]:
    """The executor that a text stands for; None for None.

    Args:
        text: "dask://HOST:PORT" of a scheduler, "processes:N" or "threads:N".

    Raises:
        RankfoldError: it stands for none, or the scheduler cannot be reached.
    """
    if text is None:
        yield None
    elif text.startswith(_DASK):
        with _dask(text) as client:
            yield client.get_executor()
    else:
        with _local(text) as executor:
            yield executor


def _local(text: str) -> Executor:
    kind, _, count = text.partition(":")
    if kind not in ("processes", "threads") or not count.isdecimal() or int(count) < 1:
        raise RankfoldError(
            f"executor {text!r} is unknown; use dask://HOST:PORT, processes:N or threads:N"
        )
    if kind == "threads":
        return ThreadPoolExecutor(int(count))
    return ProcessPoolExecutor(int(count), mp_context=get_context("spawn"))


def _dask(text: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise RankfoldError(f"executor {text!r} needs dask: pip install 'rankfold[dask]'") from None
    connect: Any = Client
    try:
        return connect(f"tcp://{text.removeprefix(_DASK)}", timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise RankfoldError(f"executor {text!r}: no scheduler answers there ({error})") from None
