"""Search for layers still at work where they should not be, once they have been replaced.

A layer that a closure, a partial, a hook or a plain object holds goes on being called after another
module has taken its place in the registries of the model, and a copy of the model may go on calling
layers of the model itself. Both are looked for in what the result leads to and, where there are
example inputs, in one run of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankfold.errors import RankfoldError
from rankfold.faults import let_through, told
from rankfold.state.object_graph import held_by, reached
from rankfold.state.restoration import settled
from rankfold_torch import tracing
from rankfold_torch.calibration import losses
from rankfold_torch.model_state import parameters_kept, unchanged
from rankfold_torch.temporary_changes import Hook, exchanged, hooked

_REGISTRIES = ("_parameters", "_buffers")  # whose ties are a matter of the refusals
_FRAMEWORK = ("torch.",)
_LEAVES = (torch.Tensor, torch.device, torch.dtype, torch.Generator)


@dataclass(frozen=True, eq=False)
class Run:
    """Record of a run of the model before anything was replaced.

    Attributes:
        inputs: of the model.
        calls: of its layers, by path.
    """

    inputs: Any
    calls: Mapping[str, int]


def holders(
    result: nn.Module, targets: Collection[int], new: Collection[nn.Module] = ()
) -> dict[int, str]:
    """Return, by identity of a target that a model leads to, a word on what holds it there.

    Args:
        result: the model.
        targets: identities of modules and tensors that it must not lead to.
        new: modules of it that may hold whatever they like.
    """
    # A replacement that a rule has built may hold the layer itself, for its sizes say.
    exempt = {id(part) for module in new for part in module.modules()}
    modules = {id(module) for module in result.modules()}
    # The graph search starts at attributes and stops at modules of the model: each of these is a
    # start of its own, so what leads to a target is named by the module nearest to it.
    starts = _attributes(result, exempt)
    known = (modules | exempt) - set(targets)
    return reached(
        starts, targets, known=known, leaves=_LEAVES, identity=identity, framework=_FRAMEWORK
    )


def identity(item: object) -> int:
    """Return a number that is equal for one object, and for tensors that lie in one storage."""
    # By exact type: subclasses need not have a storage. Tensors on the meta device all have the
    # pointer 0.
    if type(item) in (torch.Tensor, nn.Parameter):
        tensor: torch.Tensor = item  # type: ignore[assignment]  # by the line above
        if tensor.layout is torch.strided and tensor.device.type != "meta":
            return tensor.untyped_storage().data_ptr() or id(tensor)
    return id(item)


def _attributes(model: nn.Module, exempt: Collection[int]) -> Iterator[tuple[str, object]]:
    """Yield what the modules of a model hold and the functions of their classes, with a word."""
    for path, module in model.named_modules():
        if id(module) in exempt:
            continue
        for name, value in vars(module).items():
            # `_modules` is searched: a target may be a child still.
            if name in _REGISTRIES:
                continue
            yield f"{f'{path}.{name}'.lstrip('.')!r} ({type(value).__name__})", value
        yield from held_by(type(module), _FRAMEWORK)


def miscalled(
    result: nn.Module,
    new: Mapping[str, nn.Module],
    old: Mapping[str, nn.Module],
    gone: Mapping[str, nn.Module],
    run: Run,
) -> tuple[dict[str, int], list[str]]:
    """Run a result once and compares it with the run of the model before.

    Replacements compute in this run what the layers did, so that where the model goes does not
    depend on what they approximate.

    Args:
        result: the model with the replacements.
        new: the replacements.
        old: what they replace.
        gone: modules that should not be called any more.
        run: of the model before.

    Returns:
        How often those replacements are called that are not called as often as their layers, and
        which of the modules that should be gone are called.

    Raises:
        RankfoldError: the result fails.
    """
    # Keys tell the two kinds apart, as a layer and its replacement have the same path.
    watched = {(path, False): module for path, module in gone.items()}
    watched |= {(path, True): module for path, module in new.items()}
    acting = {(path, True): module for path, module in old.items()}
    counts = calls(result, run.inputs, watched, acting)
    other = {p: counts[p, True] for p in new if counts[p, True] != run.calls.get(p, 0)}
    return other, [path for path in gone if counts[path, False]]


@settled
def calls(
    model: nn.Module,
    inputs: Any,
    modules: Mapping[Any, nn.Module],
    acting: Mapping[Any, nn.Module] | None = None,
) -> Counter[Any]:
    """Count the calls of modules in one run of a model, which is left as it was.

    Args:
        model: the model.
        inputs: of it.
        modules: to watch, by a key for each.
        acting: what computes in the place of some of them, by their keys.

    Raises:
        RankfoldError: the model fails.
    """
    counts: Counter[Any] = Counter()
    # What acts may be a part of another model.
    whole = nn.ModuleList([model, *(acting or {}).values()])
    with ExitStack() as stack:
        stack.enter_context(unchanged(whole))
        stack.enter_context(parameters_kept(model))
        stack.enter_context(torch.no_grad())
        hooks = [
            (module, None, Hook(_count, counts, key))
            for key, module in modules.items()
            if not isinstance(module, torch.jit.ScriptModule)
        ]
        stack.enter_context(hooked(hooks))
        # `forward` is exchanged beneath the hooks: the replacement is called and counted, the old
        # layer computes, and nothing calls the old layer as a module.
        places = [(vars(modules[key]), "forward") for key in acting or {}]
        forwards = [module.forward for module in (acting or {}).values()]
        stack.enter_context(exchanged(places, forwards))
        try:
            tracing.call(model, losses.cloned(inputs))
        except Exception as error:  # whatever the model raises without its layers
            let_through(error)
            raise RankfoldError(
                f"the compressed model fails on the inputs with {told(error)}"
            ) from error
    return counts


def _count(
    counts: Counter[Any],
    key: Any,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    # As in the trace, whose extents count calls with a tensor alone.
    if isinstance(args[0] if args else kwargs.get("input"), torch.Tensor):
        counts[key] += 1
