"""Optimizers that go on with a model whose layers are exchanged while it is trained.

An optimizer holds tensors, and would go on with those of layers that are gone. Each new parameter
takes the place of a former one in its group, so that the group keeps its options, its learning rate
and its schedule; it has no state yet, as after the first step of any optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rankfold.errors import RankfoldError


@contextmanager
def following(model: nn.Module, optimizers: Sequence[Any]) -> Iterator[None]:
    """Exchange the parameters of optimizers for those that a model has when the context ends.

    Args:
        model: the model, before the change.
        optimizers: that hold some of its parameters. A parameter whose predecessor an optimizer
            does not hold, as a frozen one, is not given to it.

    Raises:
        RankfoldError: one of them is no optimizer of PyTorch, or holds parameters besides those of
            its groups, as `torch.optim.LBFGS` does.
    """
    before = dict(model.named_parameters())
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise RankfoldError(
                f"a {type(optimizer).__name__} is no torch.optim.Optimizer; give the optimizers of "
                "the model, one by one"
            )
        _check_holds_groups_only(optimizer, before)
    try:
        yield
    finally:
        after = dict(model.named_parameters())
        for optimizer in optimizers:
            _follow(optimizer, before, after)


def _check_holds_groups_only(
    optimizer: torch.optim.Optimizer, before: Mapping[str, nn.Parameter]
) -> None:
    """Refuse an optimizer, or one that it wraps, that keeps a list of parameters of its own."""
    known = {id(parameter) for parameter in before.values()}
    wrapped = [v for v in vars(optimizer).values() if isinstance(v, torch.optim.Optimizer)]
    for holder in (optimizer, *wrapped):
        for attribute, value in vars(holder).items():
            if attribute in ("param_groups", "state"):
                continue
            items = [value]
            if isinstance(value, Mapping):
                items = [*value.keys(), *value.values()]
            elif isinstance(value, (list, tuple, set, frozenset)):
                items = list(value)
            if any(id(item) in known for item in items):
                kind = type(holder).__name__
                raise RankfoldError(
                    f"a {kind} holds parameters in {attribute!r} besides those of its groups, and "
                    "cannot go on with others; leave it out, and make it anew after each step() "
                    "that returns True"
                )


def _follow(
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, nn.Parameter],
    after: Mapping[str, nn.Parameter],
) -> None:
    kept = {id(parameter) for parameter in after.values()}
    gone = {name: p for name, p in before.items() if id(p) not in kept}
    known = {id(parameter) for parameter in before.values()}
    successors: dict[int, list[nn.Parameter]] = {}
    for name, parameter in after.items():
        if id(parameter) not in known and gone:
            predecessor = gone[max(gone, key=lambda former: _likeness(name, former))]
            successors.setdefault(id(predecessor), []).append(parameter)
    for parameter in gone.values():
        successors.setdefault(id(parameter), [])
    former_names = {id(parameter): name for name, parameter in before.items()}
    new_names = {id(parameter): name for name, parameter in after.items()}
    for group in optimizer.param_groups:
        exchanged = [(p, successors.get(id(p), [p])) for p in group["params"]]
        if "param_names" in group:
            group["param_names"] = [
                _renamed(name, former_names.get(id(former), ""), new_names.get(id(new), ""))
                for name, (former, new_ones) in zip(group["param_names"], exchanged, strict=True)
                for new in new_ones
            ]
        # A new list: whoever made the optimizer may hold the one that it has.
        group["params"] = [new for _, new_ones in exchanged for new in new_ones]
    for parameter in gone.values():
        optimizer.state.pop(parameter, None)


def _renamed(name: str, former: str, new: str) -> str:
    """Return an optimizer's name of a parameter, with what it has in front of the model's name.

    An empty name in the model says that the parameter is of another one, and keeps its name.
    """
    if former == new:
        return name
    return name.removesuffix(former) + new if name.endswith(former) else new


def _likeness(name: str, former: str) -> tuple[int, bool]:
    """Rank a former parameter as the predecessor of a new one, by their names.

    A chain "block.up" holds "block.up.0.weight" where its layer held "block.up.weight", and the
    factors of a parameter "experts.up" are "experts.parametrizations.up.original0" and so on. The
    path in common tells the layer or the parameter, the last part a weight from a bias, which may
    be in groups of their own.
    """
    parts, former_parts = (
        [part for part in each.split(".") if part != "parametrizations"] for each in (name, former)
    )
    common = 0
    for part, other in zip(parts, former_parts, strict=False):
        if part != other:
            break
        common += 1
    return common, parts[-1] == former_parts[-1]
