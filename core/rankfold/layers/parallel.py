"""Layers worked on by an executor, and how many threads BLAS takes meanwhile.

Every layer has random numbers of its own and the number of BLAS threads depends on the model alone,
so results are those of a serial run, to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from rankfold.errors import RankfoldError, Refused, UnfinishedError
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer
from rankfold.linalg import LARGE
from rankfold.state.restoration import Shared

T = TypeVar("T")
_BATCH = 2**18  # weights in a batch, 2 MiB as float64


def each(layers: Sequence[Layer], work: Callable[..., T], *others: Iterable[Any]) -> Iterator[T]:
    """Apply a function to each layer, in order.

    With a `LayerGroup` that has an executor the layers are worked on there, and what is found out
    about a layer, its offers and candidates, comes back to it.

    Args:
        layers: a group, or any layers, which are worked on here.
        work: of a layer and of what else is given for it; picklable where the executor needs that.
        others: further arguments, one per layer each.
    """
    executor: Executor | None = None
    threads: int | None = None
    if isinstance(layers, LayerGroup):
        executor, threads = layers.executor, layers.threads
    if executor is None:
        yield from map(work, layers, *others)
        return
    here = os.getpid()
    members = list(layers)
    rows = zip(members, *others, strict=True)
    batches = list(_batches(rows))
    futures: list[Future[Any]] = []
    try:
        with working(f"layer {members[0].path!r} and others" if members else "no layer"):
            for batch in batches:
                futures.append(executor.submit(_worked, threads, here, work, batch))
        for batch, future in zip(batches, futures, strict=True):
            with working(f"layer {batch[0][0].path!r}"):
                results = future.result()
            for (layer, *_), (result, cache) in zip(batch, results, strict=True):
                layer.merge_cache(cache)
                yield result
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def working(what: str) -> Iterator[None]:
    """Make an executor's own failure an error that says what has happened and what to do.

    Args:
        what: is worked on.

    Raises:
        UnfinishedError: a worker has died, or the executor takes or gives no work.
    """
    try:
        yield
    except (RankfoldError, Refused):
        raise
    except BrokenExecutor as error:
        raise UnfinishedError(
            f"{what}: a worker of the executor has died ({error}), most often because the memory "
            "was full: use fewer workers. Files of a checkpoint that are finished are kept, so the "
            "same call goes on from there"
        ) from error
    except Exception as error:  # what cannot be pickled, a scheduler that is gone, a pool shut down
        raise UnfinishedError(
            f"{what}: the executor failed: {error!r}. Files of a checkpoint that are finished are "
            "kept, so the same call goes on from there"
        ) from error


def _batches(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Batch small layers: an executor may take longer to pass one on than it takes to plan."""
    batch: list[tuple[Any, ...]] = []
    numbers = 0
    for row in rows:
        batch.append(row)
        numbers += row[0].weight_size
        if numbers >= _BATCH:
            yield batch
            batch, numbers = [], 0
    if batch:
        yield batch


def _worked(
    threads: int | None, parent: int, work: Callable[..., T], batch: Sequence[tuple[Any, ...]]
) -> list[tuple[T, Any]]:
    # An executor may be a pool of threads of this process, or run the work in the caller itself.
    # There the caller has limited BLAS already, for the whole process: a thread must neither set
    # the limit nor lift it under its siblings. Only in another process is the limit set anew. It is
    # the caller's number and not the worker's, since the number of threads changes the order of
    # sums in BLAS, and with it the last bits.
    elsewhere = os.getpid() != parent
    done = []
    for layer, *others in batch:
        with limited(threads) if elsewhere else nullcontext():
            result = work(layer, *others)
        done.append((result, layer.cache))
        layer.release()
    return done


def threads_for(orders: Iterable[int]) -> int | None:
    """Return 1 BLAS thread where all matrices are small, as more would hinder each other.

    Args:
        orders: of the Gram matrices.
    """
    return None if max(orders, default=0) > LARGE else 1


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Limit BLAS to that many threads within the context; None leaves it as it is.

    The limit is one of the whole process: where calls overlap it lasts until the last one ends.
    """
    if threads is None:
        yield
        return
    with _blas.kept(_blas_libraries) as libraries:
        for library, _ in libraries.values():
            library.set_num_threads(threads)
        yield


def _blas_libraries() -> dict[str, tuple[Any, int]]:
    """Return the BLAS libraries in use by their files, and how many threads each takes."""
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return {library.filepath: (library, library.get_num_threads()) for library in libraries}


def _set_threads(before: Mapping[str, tuple[Any, int]]) -> None:
    for library, threads in before.values():
        # Since threadpoolctl 3.8 the thread that set OpenBLAS first is the only one that can, but
        # the last one to leave may be another.
        free = getattr(library, "clear_controlling_thread", None)
        if free is not None:
            free(force=True)
        library.set_num_threads(threads)
        if free is not None:
            free(force=True)


_blas: Shared[str, tuple[Any, int]] = Shared(_set_threads)
