"""Search for layers still held where they should not be, once they have been replaced.

A layer that a closure, a partial, a hook or a plain object holds goes on being called after another
module has taken its place in the registries of the model, and a copy of the model may go on calling
layers of the model itself. Both are looked for in what the result leads to; `check_run` looks for
them in a run of it, where there are example inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn

from rankfold.state.object_graph import held_by, reached

_REGISTRIES = ("_parameters", "_buffers")  # whose ties are a matter of the refusals
_FRAMEWORK = ("torch.",)
_LEAVES = (torch.Tensor, torch.device, torch.dtype, torch.Generator)


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
