"""`compress_checkpoint`: a plan for a checkpoint, and its files written one by one, anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed, wait
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from rankfold.checkpoints.arguments import dropped_names, target_of
from rankfold.checkpoints.descriptions import description
from rankfold.checkpoints.planner import LayerTensors
from rankfold.checkpoints.planning import PlanRequest, request
from rankfold.checkpoints.reader import Checkpoint
from rankfold.checkpoints.shards import Done, Part, Work, write
from rankfold.checkpoints.workdir import PLANNED, Job, Workdir, open_workdir
from rankfold.decompose.base import Placement
from rankfold.errors import RankfoldError
from rankfold.layers.parallel import working
from rankfold.plan.plan import LayerPlan, Plan, validate
from rankfold.policies.base import Policy
from rankfold.progress import Advance, progress
from rankfold.state.restoration import settled
from rankfold.storage.files import sha256_of, write_whole
from rankfold.storage.model_folders import files_beside
from rankfold.storage.saved_plan import PLAN, WEIGHTS, Saved, index_file, saved_at, weights_file
from rankfold.storage.work_folder import work_folder


@settled
def compress_checkpoint(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str],
    policy: Policy | str | Plan,
    *,
    inputs: Mapping[str, Sequence[int] | Mapping[str, Any]] | None = None,
    methods: Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    overrides: Mapping[str, Policy | str] | None = None,
    drop: str | Sequence[str] = (),
    key: str | None = None,
    placement: Placement = "balanced",
    seed: int = 0,
    moments: str | PathLike[str] | None = None,
    executor: Executor | None = None,
) -> Plan:
    """Compress a checkpoint without the code of its model, one tensor at a time.

    Layers are known by the names and shapes of their weights; everything else is copied bit for
    bit. Memory is bounded by a multiple of the largest tensor. A run that was killed goes on where
    it stopped when it is called again, with the same result.

    Args:
        checkpoint: a .safetensors file, a folder with one or with several and their index, that
            index, or a file of another kind that a framework's plugin reads (.pt, .pth, .bin),
            whatever its name.
        output: the folder to write, for `rankfold.load`: plan.json and the weights, in as many
            files as the checkpoint has. Where a library opens the checkpoint as a model,
            it opens the result, too, with config.json, the tokenizer's files and so on beside it.
        policy: as for `rankfold.plan`; budgets over parameters, or MACs where `inputs` are given.
            Or a plan to be carried out, whose methods, ranks, placement and seed count.
        inputs: for glob patterns of layer paths, the shape of the layer's input without its
            channels, {"conv*": (1, 32, 32)}; or that and the stride, padding, dilation and groups
            of a convolution, {"conv*": {"shape": (1, 32, 32), "stride": 2}}, which are else taken
            to be 1, 0, 1 and 1. Layers of no pattern count no MACs.
        methods: as for `rankfold.plan`.
        include: as for `rankfold.plan`.
        exclude: as for `rankfold.plan`.
        overrides: as for `rankfold.plan`.
        drop: glob patterns of tensors that are not copied: masks and the like that older versions
            of a model stored and its present one does not know.
        key: of the state that is meant, where a file holds several, {"model": ..., "ema": ...};
            "a/b" for one within another.
        placement: as for `rankfold.plan`.
        seed: as for `rankfold.plan`.
        moments: a file of `rankfold.Moments.save`, gathered on the live model; those of one
            layer at a time are read.
        executor: any `concurrent.futures.Executor`. Its workers read their tensors and write their
            files themselves, so they need the same paths; only the plan travels.

    Returns:
        The plan, with errors of the weights as they are stored.

    Raises:
        RankfoldError: the checkpoint is damaged, holds no layers or values that are not finite, the
            policy or a pattern does not fit, the output cannot be written, or another run is
            writing it.

    Example:
        >>> from safetensors.numpy import save_file
        >>> weight = np.random.default_rng(0).standard_normal((64, 48), dtype=np.float32)
        >>> save_file({"fc.weight": weight}, "model.safetensors")
        >>> rf.compress_checkpoint("model.safetensors", "small", rf.Ranks(8))["fc"].params
        (3072, 896)
    """
    asked = request(
        checkpoint,
        policy,
        inputs=inputs,
        methods=methods,
        include=include,
        exclude=exclude,
        overrides=overrides,
        key=key,
        placement=placement,
        seed=seed,
        moments=moments,
        executor=executor,
    )
    source = asked.source
    target = target_of(output, source)
    dropped = dropped_names(source, asked.layer_tensors, drop)
    job = _job(asked, sorted(dropped), key)
    before = _finished(target, job.key)
    # A work folder beside a finished result is that of a run killed after it had published; opening
    # it, below, clears it away. Without one there is nothing to do and nothing to lock.
    if before is not None and not work_folder(target).exists():
        return before
    with open_workdir(target, job) as workdir, _watched(source, workdir):
        before = _finished(target, job.key)  # by a run that has just ended or was killed
        if before is not None:
            return before
        plan = _resumed(workdir, asked)
        # Only the layers that are replaced travel to the workers.
        used = {layer.path: asked.layer_tensors[layer.path] for layer in plan.replaced}
        work = Work(source, used, workdir.files, asked.placement, asked.seed, asked.moments)
        done = _written(work, _parts(source, plan, used, dropped), workdir, executor)
        return _published(source, target, plan, done, workdir, job)


def _resumed(workdir: Workdir, asked: PlanRequest) -> Plan:
    """Return the plan that an earlier run left, or a new one."""
    plan = workdir.read(PLANNED, Plan)
    # The plan is about half of the work, so one that an earlier run left is taken. The tensor rules
    # of plugins are no part of the job's key; with others it may be of other layers by now.
    if plan is None or not _fits(plan, asked.layer_tensors):
        plan = asked.plan()
        workdir.note(PLANNED, plan)
    return plan


@contextmanager
def _watched(source: Checkpoint, workdir: Workdir) -> Iterator[None]:
    """Discard all work on a checkpoint that has changed, whatever error that has led to.

    Raises:
        RankfoldError: it has changed.
    """
    try:
        yield
    # A change shows in many ways: a header that does not fit, a worker that sees another file, a
    # tensor cut short. So the cause is looked for after any error.
    except RankfoldError as error:
        if source.is_unchanged():
            raise
        workdir.clear()
        raise _changed(source) from error


def _changed(source: Checkpoint) -> RankfoldError:
    return RankfoldError(
        f"{str(source.path)!r} was changed or removed while it was compressed; what was made of it "
        "is discarded: repeat the call when it is complete"
    )


def _fits(plan: Plan, layer_tensors: Mapping[str, LayerTensors]) -> bool:
    """Return whether a plan left by an earlier run can be one of these layers."""
    # The note has the seal of its job, but the type alone allows counts that no plan has.
    try:
        validate(plan)
    except RankfoldError:
        return False
    return [layer.path for layer in plan.layers] == list(layer_tensors)


def _job(asked: PlanRequest, dropped: list[str], key: str | None) -> Job:
    """Return the identity of a call: two calls with equal keys are for the same result."""
    source, moments = asked.source, asked.moments
    # The executor is no part of the job: it changes the time of a run and no byte of the result.
    others = [asked.inputs, asked.methods, dropped, key, asked.placement, asked.seed]
    # The moments count by their content: a file of that name may have been written anew since.
    try:
        content = None if moments is None else sha256_of(moments)
    except OSError as error:
        raise RankfoldError(f"moments {str(moments)!r} cannot be read: {error}") from None
    files = _beside(source, Plan(layers=()))
    beside = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    # Not by `repr`, in which a policy of a plugin may show its address: it would never be resumed.
    facts = description((source.content, asked.selection, others, content, sorted(beside.items())))
    key = hashlib.sha256(facts.encode("utf-8", "surrogatepass")).hexdigest()
    return Job(key, str(source.path), source.content)


def _finished(folder: Path, job: str) -> Plan | None:
    """Return the plan of a finished result of this job; None if it is of another or was changed."""
    saved = saved_at(folder)
    if saved is None or saved.job != job:
        return None
    # No hash of the index is kept, for it follows from the files; it must only be there.
    index = {index_file(saved.stem)} if len(saved.files) > 1 else set()
    if not all(_plain(folder / name) for name in (*index, *saved.beside)):
        return None
    try:
        whole = all(saved.is_of(folder / name) for name in saved.files)
        same = all(sha256_of(folder / name) == hash_ for name, hash_ in saved.beside.items())
    except (RankfoldError, OSError):
        return None
    return saved.plan if whole and same else None


def _plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def _parts(
    source: Checkpoint,
    plan: Plan,
    layer_tensors: Mapping[str, LayerTensors],
    dropped: frozenset[str],
) -> list[Part]:
    """List the files to write, one per file read; a layer goes where its weight was."""
    # A bias may lie in another file than its weight. It goes with the layer, so no file may copy
    # it.
    used = {*dropped, *(tensors.weight for tensors in layer_tensors.values())}
    used |= {tensors.bias for tensors in layer_tensors.values() if tensors.bias is not None}
    stem = WEIGHTS if source.kind is None else source.kind.weights
    count = len(source.files)
    parts = []
    for number, file in enumerate(source.files, 1):
        name = weights_file(stem, number, count)
        layers = [
            layer
            for layer in plan.replaced
            if source.owner[layer_tensors[layer.path].weight] == file
        ]
        parts.append(Part(name, file, tuple(layers), frozenset(used)))
    return parts


def _written(
    work: Work, parts: Sequence[Part], workdir: Workdir, executor: Executor | None
) -> list[Done]:
    """Return the records of all files, in order; those that an earlier run finished are kept."""
    records: dict[str, Done] = {}
    with progress("writing", len(parts)) as advance:
        # A file counts as finished by its hash, not by its presence: it is read once more, which is
        # much less than to decompose its layers again.
        for part in parts:
            done = workdir.finished(part.name)
            if done is not None:
                advance(part.name)
                records[part.name] = done
        missing = [part for part in parts if part.name not in records]
        written = _each(work, missing, executor, advance)
        # Only this process notes records. A file from a worker whose record never arrived has none,
        # so the next run deletes it and makes it again.
        for done in written:
            workdir.finish(done)
            records[done.file] = done
    return [records[part.name] for part in parts]


def _each(
    work: Work, parts: Sequence[Part], executor: Executor | None, advance: Advance
) -> Iterator[Done]:
    if executor is None:
        for part in parts:
            advance(part.name)
            yield write(work, part)
        return
    futures: dict[Future[Done], str] = {}
    try:
        with working(f"{len(parts)} files"):
            for part in parts:
                futures[executor.submit(write, work, part)] = part.name
        for future in as_completed(futures):
            advance(futures[future])
            with working(f"file {futures[future]!r}"):
                done = future.result()
            yield done
    finally:
        wait([future for future in futures if not future.cancel()])  # they still write


def _as_stored(plan: Plan, done: Sequence[Done]) -> Plan:
    errors = {path: error for record in done for path, error in record.errors.items()}
    sensitivities = {path: s for record in done for path, s in record.sensitivities.items()}

    def stored(layer: LayerPlan) -> LayerPlan:
        if layer.path not in errors:
            return msgspec.structs.replace(layer, op="")  # its shape alone does not tell
        return msgspec.structs.replace(
            layer, error=errors[layer.path], sensitivity=sensitivities.get(layer.path)
        )

    return msgspec.structs.replace(plan, layers=tuple(map(stored, plan.layers)))


def _published(
    source: Checkpoint, target: Path, plan: Plan, done: Sequence[Done], workdir: Workdir, job: Job
) -> Plan:
    """Complete the files by the plan and give them their place; return the plan as it is stored.

    Raises:
        RankfoldError: the checkpoint has changed.
    """
    # The errors so far are those of the factors in working precision; those of the factors as they
    # were rounded for storage are known only when they are written.
    plan = _as_stored(plan, done)
    beside = _beside(source, plan)
    for name, content in beside.items():
        write_whole(workdir.files / name, content)
    hashes = {name: sha256_of(workdir.files / name) for name in beside}
    files = {record.file: record.sha256 for record in done}
    saved = Saved.of(plan, workdir.files, files, job.key, hashes)
    names = _complete(workdir.files, saved, done)
    # Parts are written one by one, and each is right for what was read at the time: a checkpoint
    # that was exchanged in between would give a result of two.
    if not source.is_unchanged():
        raise _changed(source)
    workdir.publish(target, names)
    return plan


def _beside(source: Checkpoint, plan: Plan) -> dict[str, bytes]:
    """Return what a library needs beside the weights to open them, by the names of files.

    Raises:
        RankfoldError: it cannot be read.
    """
    if source.kind is None:
        return {}
    files = files_beside(source.kind, source.folder, source.settings, plan)
    try:
        return {
            name: content if isinstance(content, bytes) else content.read_bytes()
            for name, content in files.items()
        }
    except OSError as error:
        raise RankfoldError(f"what lies beside the checkpoint cannot be read: {error}") from None


def _complete(folder: Path, saved: Saved, done: Sequence[Done]) -> set[str]:
    """Add the plan and, for several files, their index; return the names of all files."""
    names = {PLAN, *saved.files, *saved.beside}
    if len(done) > 1:
        index: dict[str, Any] = {
            "metadata": {"total_size": sum(sum(record.tensors.values()) for record in done)},
            "weight_map": {name: record.file for record in done for name in sorted(record.tensors)},
        }
        name = index_file(saved.stem)
        write_whole(folder / name, msgspec.json.format(msgspec.json.encode(index), indent=2))
        names.add(name)
    write_whole(folder / PLAN, msgspec.json.format(msgspec.json.encode(saved), indent=1))
    return names
