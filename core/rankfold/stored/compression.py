"""`compress_checkpoint`: a plan for a checkpoint, and its files written one by one, anywhere."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from rankfold.checkpoint import INDEX, PLAN, WEIGHTS, Saved, check_replaceable, saved_at
from rankfold.contracts import Placement, Policy
from rankfold.errors import RankfoldError
from rankfold.moments import Moments
from rankfold.parallel import threads_for
from rankfold.pipeline import plan as planned
from rankfold.plan import LayerPlan, Plan
from rankfold.progress import Advance, progress
from rankfold.selection import Selection
from rankfold.stored.adapter import CheckpointAdapter, Slot
from rankfold.stored.source import Checkpoint
from rankfold.stored.workplace import Workplace, workplace, write_whole
from rankfold.stored.writing import Done, Part, Work, sha256_of, write


def compress_checkpoint(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str],
    policy: Policy,
    *,
    inputs: Mapping[str, Sequence[int]] | None = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    overrides: Mapping[str, Policy] | None = None,
    placement: Placement = "balanced",
    seed: int = 0,
    moments: str | PathLike[str] | None = None,
    executor: Executor | None = None,
) -> Plan:
    """Compresses a checkpoint without the code of its model, one tensor at a time.

    Layers are known by the names and shapes of their weights; everything else is copied bit for
    bit. Memory is bounded by a multiple of the largest tensor. A run that was killed goes on where
    it stopped when it is called again, with the same result.

    Args:
        checkpoint: a .safetensors file, a folder with one or with several and their index, that
            index, or a .pt file of a plain state dict (with PyTorch).
        output: the folder to write, for `rankfold.load`: plan.json and the weights, in as many
            files as the checkpoint has.
        policy: as for `rankfold.plan`; budgets over parameters, or MACs where `inputs` are given.
        inputs: for glob patterns of layer paths, the shape of the layer's input without its
            channels: {"conv*": (1, 32, 32)}. Layers of no pattern count no MACs.
        methods: as for `rankfold.plan`.
        include: as for `rankfold.plan`.
        exclude: as for `rankfold.plan`.
        overrides: as for `rankfold.plan`.
        placement: as for `rankfold.plan`.
        seed: as for `rankfold.plan`.
        moments: a file of `rankfold.Moments.save`, gathered on the live model; they are held in
            memory while the plan is made.
        executor: any `concurrent.futures.Executor`. Its workers read their tensors and write their
            files themselves, so they need the same paths; only the plan travels.

    Returns:
        The plan, with errors of the weights as they are stored.

    Raises:
        RankfoldError: the checkpoint is damaged, holds no layers or values that are not finite, the
            policy or a pattern does not fit, the output cannot be written, or another run is
            writing it.
    """
    selection = Selection(policy, include, exclude, overrides)
    if executor is not None and not hasattr(executor, "submit"):
        raise RankfoldError(
            f"executor: {type(executor).__name__}; give a concurrent.futures.Executor"
        )
    source = Checkpoint(Path(os.path.abspath(checkpoint)))  # noqa: PTH100 - resolve() follows links
    target = Path(os.path.abspath(output))  # noqa: PTH100
    if target in (source.path, source.folder):
        raise RankfoldError(f"output {str(target)!r} is the checkpoint itself; name another folder")
    check_replaceable(target)
    known = None if moments is None else Path(os.path.abspath(moments))  # noqa: PTH100
    adapter = CheckpointAdapter(lambda path: bool(selection.left_out((path,))))
    if not adapter.slots(source):
        raise RankfoldError(
            f"{str(source.path)!r} has no tensor that is known to be the weight of a layer"
        )
    job = _job(source, selection, inputs, methods, placement, seed, known)
    before = saved_at(target)
    if before is not None and before.job == job and _intact(target, before):
        return before.plan
    with workplace(target, job) as place:
        plan = place.read("plan.json", Plan)
        if plan is None:
            plan = planned(
                source,
                policy,
                inputs=inputs,
                methods=methods,
                include=include,
                exclude=exclude,
                overrides=overrides,
                placement=placement,
                seed=seed,
                moments=None if known is None else Moments.load(known),
                executor=executor,
                adapter=adapter,
            )
            place.note("plan.json", plan)
        slots = {layer.path: adapter.slots(source)[layer.path] for layer in plan.replaced}
        work = Work(source, slots, place.files, placement, seed, known, _threads(source, slots))
        done = _written(work, _parts(source, plan, slots), place, executor)
        plan = _as_stored(plan, done)
        _complete(place.files, Saved.of(plan, {d.file: d.sha256 for d in done}, job), done)
        place.publish(target)
        place.remove()
    return plan


def _job(source: Checkpoint, selection: Selection, *settings: object) -> str:
    """Tells whether two calls are for the same result."""
    *others, moments = settings
    content = None if moments is None else sha256_of(Path(str(moments)))
    facts = (source.fingerprint, repr(selection), repr(others), content)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _intact(folder: Path, saved: Saved) -> bool:
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == digest
        for name, digest in saved.files.items()
    )


def _threads(source: Checkpoint, slots: Mapping[str, Slot]) -> int | None:
    shapes = [slot.blank(source).weight.shape for slot in slots.values()]
    return threads_for(min(shape[0], math.prod(shape[1:])) for shape in shapes)


def _parts(source: Checkpoint, plan: Plan, slots: Mapping[str, Slot]) -> list[Part]:
    """A file for each of the checkpoint's; a layer goes where its weight was."""
    used = {slot.weight for slot in slots.values()}
    used |= {slot.bias for slot in slots.values() if slot.bias is not None}
    count = len(source.files)
    parts = []
    for place, file in enumerate(source.files, 1):
        name = WEIGHTS if count == 1 else f"weights-{place:05}-of-{count:05}.safetensors"
        own = [layer for layer in plan.replaced if source.owner[slots[layer.path].weight] == file]
        parts.append(Part(name, file, tuple(own), frozenset(used)))
    return parts


def _written(
    work: Work, parts: Sequence[Part], place: Workplace, executor: Executor | None
) -> list[Done]:
    """The records of all files, in order."""
    found: dict[str, Done] = {}
    with progress("writing", len(parts)) as advance:
        for part in parts:
            done = place.finished(part.name)
            if done is not None:
                advance(part.name)
                found[part.name] = done
        missing = [part for part in parts if part.name not in found]
        made = _each(work, missing, executor, advance)
        for done in made:
            place.finish(done)
            found[done.file] = done
    return [found[part.name] for part in parts]


def _each(
    work: Work, parts: Sequence[Part], executor: Executor | None, advance: Advance
) -> Iterator[Done]:
    if executor is None:
        for part in parts:
            advance(part.name)
            yield write(work, part)
        return
    futures = {executor.submit(write, work, part): part for part in parts}
    try:
        for future in as_completed(futures):
            advance(futures[future].name)
            try:
                yield future.result()
            except RankfoldError:
                raise
            except Exception as error:  # of the executor: a worker has died, its pool is gone
                raise RankfoldError(
                    f"{futures[future].name!r} was not written: {error!r}; files that are finished "
                    "are kept, so the same call goes on from there"
                ) from error
    finally:
        for future in futures:
            future.cancel()


def _as_stored(plan: Plan, done: Sequence[Done]) -> Plan:
    errors = {path: error for one in done for path, error in one.errors.items()}
    sensitivities = {path: s for one in done for path, s in one.sensitivities.items()}

    def stored(layer: LayerPlan) -> LayerPlan:
        if layer.path not in errors:
            return layer
        return msgspec.structs.replace(
            layer, error=errors[layer.path], sensitivity=sensitivities.get(layer.path)
        )

    return msgspec.structs.replace(plan, layers=tuple(map(stored, plan.layers)))


def _complete(folder: Path, saved: Saved, done: Sequence[Done]) -> None:
    """Adds the plan and, for several files, their index."""
    if len(done) > 1:
        index: dict[str, Any] = {
            "metadata": {"total_size": sum(sum(one.tensors.values()) for one in done)},
            "weight_map": {name: one.file for one in done for name in sorted(one.tensors)},
        }
        write_whole(folder / INDEX, msgspec.json.format(msgspec.json.encode(index), indent=2))
    write_whole(folder / PLAN, msgspec.json.format(msgspec.json.encode(saved), indent=1))
