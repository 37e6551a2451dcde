"""Watch over what a run of a model does with its layers besides calling them.

A layer can be replaced if nothing but its own `forward` computes with its weight, and if it
computes what it was read as. To look at the dtype or the shape of a weight does no harm, and a read
may go by many ways (`parameters()`, `state_dict()`, a helper, `vmap`). So it is not the reads that
are watched: every operation of the run is, for arguments in the memory of a weight whose layer is
not running. Views and new tensors like a weight read no values either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry

from rankfold.state.restoration import Restored
from rankfold_torch.layers.low_rank_sequential import CONSTANTS, NEW
from rankfold_torch.layers.stock import stock
from rankfold_torch.operation_mode import OperationMode
from rankfold_torch.temporary_changes import dispatched
from rankfold_torch.torch_internals import in_backward
from rankfold_torch.usage.shared_memory import overlap, storage

_VECTORS = {torch.ops.aten.mv: 0, torch.ops.aten.addmv: 1, torch.ops.aten.dot: 0}
"""Products that PyTorch's own table lacks: which argument has an element per product."""
_OPAQUE = (
    torch.ops.aten.mkldnn_rnn_layer,
    torch.ops.aten._cudnn_rnn,
    torch.ops.aten._native_multi_head_attention,
    torch.ops.aten._transformer_encoder_layer_fwd,
)
"""Operations that multiply by the matrices of whole modules, which the table lacks, too."""
_CONTAINERS = (tuple, list, set, frozenset)


class WeightUses(OperationMode):  # type: ignore[no-untyped-call]  # of torch's own base
    """Records, while it is entered, why layers must be left alone.

    Args:
        layers: the layers to watch, by path.

    Attributes:
        refusals: by path, why what was seen forbids replacing the layer.
        macs: by path, the multiply-accumulates of the operations of stock layers and of subclasses,
            and of all other operations by one of their or of another layer's matrices.
        uncounted: paths of layers with operations whose multiply-accumulates are not known.
    """

    # Else PyTorch refuses operators such as `cond` and `flex_attention` under a mode.
    supports_higher_order_operators = True

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.refusals: dict[str, str] = {}
        self.macs: Counter[str] = Counter()
        self.uncounted: set[str] = set()
        self._paths = {id(m): path for path, m in layers.items() if stock(m) is not None}
        self._others = {id(m): path for path, m in layers.items() if stock(m) is None}
        self._layers = layers
        self._running: list[nn.Module] = []
        self._constants = {path: _constants(module) for path, module in layers.items()}
        self._tensors = {path: dict(module._parameters) for path, module in layers.items()}
        # One look-up by storage per argument, since this runs for every operation of the model.
        self._by_storage: dict[int, list[tuple[str, str, torch.Tensor]]] = {}
        for path, tensors in self._tensors.items():
            for name, tensor in tensors.items():
                if tensor is not None:
                    self._by_storage.setdefault(storage(tensor), []).append((path, name, tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note weights among the arguments of an operation, then carry it out."""
        kwargs = kwargs or {}
        read = set() if _reads_nothing(func) else self.note((args, kwargs))
        # The mode is off while it handles an operation, so this does not come back here.
        result = func(*args, **kwargs)
        self._count(read, func, args, kwargs, result)
        return result

    def _count(
        self, read: set[str], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Count the multiply-accumulates of an operation for the layer whose they are."""
        count = _macs(func, args, kwargs, result)
        opaque = getattr(func, "overloadpacket", func) in _OPAQUE
        if not (count or opaque):
            return
        # The innermost layer that runs has done the operation.
        runs = id(self._running[-1]) if self._running else None
        if runs in self._paths:
            self.macs[self._paths[runs]] += count
            return
        users = set(read)
        if runs in self._others and self._multiplies(self._others[runs], (args, kwargs)):
            users.add(self._others[runs])
        for path in users:
            self.macs[path] += count
        if opaque:
            self.uncounted |= users

    def _multiplies(self, path: str, values: Any) -> bool:
        """Return whether an operation inside a layer that is no stock one takes its matrix.

        Products of activations alone, as in attention, are no layer's.
        """
        weights = [weight for weight in self._tensors[path].values() if weight is not None]
        storages = {_storage(weight) for weight in weights}
        tensors = list(_tensors(values))
        if any(_storage(tensor) in storages for tensor in tensors):
            return True
        # A matrix that is cast, masked or standardised first is in other memory than the parameter,
        # but of its shape. Where both operands are, they are activations as large as a table that
        # is added to them.
        outlines = {_outline(weight) for weight in weights}
        return [_outline(tensor) in outlines for tensor in tensors].count(True) == 1

    def note(self, values: Any) -> set[str]:
        """Record the weights among values that an operation takes or a model gives.

        A backward pass inside the run (forces, gradients of the input) reads the weights of what
        ran before it, which was seen then.

        Returns:
            The paths of the layers that do not run themselves and whose weights are among them.
        """
        read: set[str] = set()
        if in_backward():
            return read
        for tensor in _tensors(values):
            for path, name, weight in self._by_storage.get(_storage(tensor), ()):
                # One storage may hold several weights, as of a fused projection: only overlapping
                # elements count as a read.
                runs_itself = bool(self._running) and self._running[-1] is self._layers[path]
                if not runs_itself and path not in read and overlap(weight, tensor):
                    self.refusals.setdefault(path, f"its {name} is read from outside the layer")
                    read.add(path)
        return read

    def enter(self, path: str, module: nn.Module) -> None:
        """Note that a layer begins to run; check that it is still what it was read as."""
        self._check(path, module)
        self._running.append(module)

    def leave(self, module: nn.Module) -> None:
        """Note that a layer has run."""
        # Only what was entered is left: a hook that is always called also runs where an earlier
        # pre-hook has raised.
        if self._running and self._running[-1] is module:
            self._running.pop()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside; put constants of layers that are set there back."""

        def undo() -> None:
            for path, module in self._layers.items():
                # A constant that is set after the last call counts, too.
                self._check(path, module)
                vars(module).update(self._constants[path])

        with Restored(undo), dispatched(self):
            yield

    def _check(self, path: str, module: nn.Module) -> None:
        """Refuse a layer whose constants or tensors are other objects than at the beginning.

        They are compared by identity: what is set to the value that it has may be set to another
        one the next time.
        """
        before = self._constants[path]
        # The default is the module, which is the value of no constant: one that is new counts as
        # set.
        changed = [n for n, v in _constants(module).items() if v is not before.get(n, module)]
        if changed:
            reason = f"its {', '.join(changed)} is set while the model runs"
            self.refusals.setdefault(path, reason)
        for name, tensor in self._tensors[path].items():
            # An offloaded one is another tensor after every call, with the values that it had.
            away = tensor is not None and tensor.is_meta
            if not away and module._parameters.get(name) is not tensor:
                reason = f"it runs with another {name} than its own (functional_call or alike)"
                self.refusals.setdefault(path, reason)


def _reads_nothing(func: Any) -> bool:
    """True of views, whose values count where they are read, and of new tensors like another."""
    schema = getattr(func, "_schema", None)
    if schema is None:  # a higher-order operator
        return False
    if schema.name.rpartition("::")[2] in NEW:
        return True
    aliases = [result.alias_info for result in schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _macs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Number of multiply-accumulates of an operation, whatever its layer is taken for."""
    packet = getattr(func, "overloadpacket", func)
    if packet in _VECTORS:
        return int(args[_VECTORS[packet]].numel())
    formula = flop_registry.get(packet)
    # The table of PyTorch counts two operations for a multiply-accumulate.
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result)) // 2


def _outline(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the sizes of a tensor that reshaping and transposing leave, sorted."""
    return tuple(sorted(size for size in tensor.shape if size > 1))


def _constants(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name in CONSTANTS}


def _tensors(values: Any) -> Iterable[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, _CONTAINERS):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))


def _storage(tensor: torch.Tensor) -> int:
    """Return `storage` of a tensor; its id where it has none (functorch, nested tensors)."""
    try:
        return storage(tensor)
    except (RuntimeError, NotImplementedError):
        return id(tensor)
