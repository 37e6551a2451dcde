"""Layers worked on by an executor.

Every layer has random numbers of its own and the number of BLAS threads depends on the layer alone,
so results are those of a serial run, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from typing import Any, TypeVar

from rankfold.errors import RankfoldError, Refused, UnfinishedError
from rankfold.layers.group import LayerGroup
from rankfold.layers.layer import Layer

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
    executor: Executor | None = layers.executor if isinstance(layers, LayerGroup) else None
    if executor is None:
        yield from map(work, layers, *others)
        return
    members = list(layers)
    rows = zip(members, *others, strict=True)
    batches = list(_batches(rows))
    futures: list[Future[Any]] = []
    try:
        with working(f"layer {members[0].path!r} and others" if members else "no layer"):
            for batch in batches:
                futures.append(executor.submit(_worked, work, batch))
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


def _worked(work: Callable[..., T], batch: Sequence[tuple[Any, ...]]) -> list[tuple[T, Any]]:
    done = []
    for layer, *others in batch:
        result = work(layer, *others)
        # In a worker, the layer goes back as its cache, without the arrays that `release` drops.
        done.append((result, layer.cache))
        layer.release()
    return done
