"""Checks that refuse a PyTorch layer for what it is itself, or for what surrounds it.

A layer is replaced only if nothing but its own `forward` uses its weight. Whatever says otherwise
(computed weights, hooks, ties, owners that reach into the layer, wrappers) is a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from rankfold.errors import RankfoldError, Refused
from rankfold_torch.layers.interpolative import Interpolative
from rankfold_torch.layers.stock import computes_as, stock
from rankfold_torch.offloading import declared_ties, is_tied, source
from rankfold_torch.temporary_changes import Hook
from rankfold_torch.usage.shared_memory import overlap, storage
from rankfold_torch.usage.source_analysis import reads_of

_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    *_STATE_HOOKS,
)
_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_QUANTIZED = ("torch.ao.nn", "torch.nn.quantized", "torch.nn.intrinsic", "torch.nn.qat")
_WRAPPERS = ("OptimizedModule", "DataParallel", "DistributedDataParallel")


def is_quantized(module: nn.Module) -> bool:
    """True if it is one of PyTorch's own quantized or quantization-aware layers."""
    # By module: quantization-aware layers are subclasses of the float ones and quantized ones are
    # not; they have no base of their own in common.
    return type(module).__module__.startswith(_QUANTIZED)


def check_root(model: nn.Module) -> None:
    """Refuse wrappers, which are to be put around the compressed model instead.

    Raises:
        RankfoldError: naming the wrapper and what to compress.
    """
    # By name, without an import: the classes of torch._dynamo and torch.distributed are slow to
    # load, or not there in every build.
    name = type(model).__name__
    if name == "OptimizedModule":
        raise RankfoldError(
            "the model is a torch.compile wrapper: compress model._orig_mod, then compile the "
            "result"
        )
    if name in _WRAPPERS:
        raise RankfoldError(
            f"the model is a {name} wrapper: compress model.module, then wrap the result"
        )
    if name == "FullyShardedDataParallel":
        raise RankfoldError(
            "the model is sharded by FullyShardedDataParallel: compress it before sharding"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise RankfoldError(
            "the model is a ScriptModule, whose layers cannot be replaced: compress the eager "
            "model, then script or trace the result"
        )


def check_class(module: nn.Module) -> None:
    """Refuse a layer that is none of the stock layers, or computes something else.

    Raises:
        Refused: and why.
    """
    name = type(module).__name__
    if is_quantized(module):
        raise Refused("quantized: compress the float model, then quantize the result")
    # Before the class: a lazy layer is of a subclass until its first call, and its weight cannot be
    # looked at.
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise Refused("lazy: run the model once on example inputs first")
    if isinstance(module, nn.RNNBase):
        raise Refused("recurrent weights are not decomposed")
    if isinstance(module, nn.MultiheadAttention):
        raise Refused("owned by nn.MultiheadAttention, which reads it itself")
    if isinstance(module, Interpolative):
        raise Refused("interpolative already: expand the compressed layer to decompose it anew")
    kind = stock(module)
    if kind is None:
        raise Refused(f"no rule reads a {name}; a layer rule can teach it")
    if not computes_as(module, kind):
        raise Refused(f"{name} has a forward of its own; a layer rule can teach it")


def check_state(module: nn.Module) -> None:
    """Refuse a layer for how its weights are held, whatever its class.

    Raises:
        Refused: and why.
    """
    if parametrize.is_parametrized(module):
        raise Refused(
            "parametrized: torch.nn.utils.parametrize.remove_parametrizations makes it plain"
        )
    buffers = dict(module.named_buffers(recurse=False))
    if "weight_mask" in buffers or "bias_mask" in buffers:
        raise Refused("masked by pruning: torch.nn.utils.prune.remove makes it plain")
    # `weight_norm` and its like keep weight_g, weight_v and compute `weight` in a hook before
    # forward.
    if "weight" not in module._parameters and module._parameters:
        names = sorted(module._parameters)
        raise Refused(f"its weight is computed from {names} (weight_norm, spectral_norm or alike)")
    for part, tensor in module._parameters.items():
        if tensor is not None:
            _check_tensor(part, tensor)
    dtypes = {t.dtype for t in module._parameters.values() if t is not None}
    if len(dtypes) > 1:
        raise Refused(f"its weight and bias have different dtypes {sorted(map(str, dtypes))}")
    tensors = [tensor for tensor in module._parameters.values() if tensor is not None]
    # Hooks of this package are on the layer while a model is traced or calibrated.
    attached = [hook for hooks in _HOOKS for hook in (getattr(module, hooks, None) or {}).values()]
    if not all(isinstance(hook, Hook) for hook in attached) or any(map(_has_hooks, tensors)):
        raise Refused("it has hooks, which would be lost; remove them to have it compressed")


def check_parameter(module: nn.Module, name: str) -> None:
    """Refuse a layer that is a parameter for how it is held. Its module stays, hooks included.

    Raises:
        Refused: and why.
    """
    tensor = module._parameters[name]
    assert tensor is not None
    if nn.parameter.is_lazy(tensor):
        raise Refused("lazy: run the model once on example inputs first")
    if isinstance(module, torch.jit.ScriptModule):
        raise Refused("its module is a ScriptModule")
    if source(module, name) is not None:
        raise Refused(
            "accelerate offloads it, and knows no factors of a parameter: load the model without "
            "offload, or leave its module out of that"
        )
    _check_tensor(name, tensor)
    if not tensor.numel():
        raise Refused("it is empty")
    # Forward hooks of the module are in order, as it stays. Those on its state know the parameter
    # by a name that is gone afterwards.
    if any(getattr(module, hooks, None) for hooks in _STATE_HOOKS):
        raise Refused("its module has hooks on its state, which names the parameter")
    if _has_hooks(tensor):
        raise Refused("it has hooks, which would be lost; remove them to have it compressed")


def _check_tensor(part: str, tensor: torch.Tensor) -> None:
    # `.data` of a plain parameter is a plain tensor; of DTensor, quantized tensors of torchao and
    # other subclasses it keeps their class.
    if type(tensor.data) is not torch.Tensor or tensor.layout is not torch.strided:
        raise Refused(f"its {part} is a {type(tensor.data).__name__}, not a plain dense tensor")
    if tensor.device.type == "meta":
        raise Refused(f"its {part} is on the meta device: it has no values; see to_empty()")
    if tensor.dtype not in _FLOATS:
        raise Refused(f"its {part} is {tensor.dtype}; a float dtype is needed")


def _has_hooks(tensor: torch.Tensor) -> bool:
    return any(getattr(tensor, hooks, None) for hooks in _GRADIENT_HOOKS)


def check_parts(module: nn.Module) -> None:
    """Refuse a stock layer that holds or does more than weight and bias say.

    Raises:
        Refused: and why.
    """
    extra = {*module._parameters, *module._buffers, *module._modules} - {"weight", "bias"}
    if extra:
        raise Refused(f"it holds {', '.join(sorted(extra))} besides weight and bias")
    # The look-up writes to the table in forward; two factors have no rows to renormalise.
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise Refused("max_norm renormalises the rows of the table as they are read")


class ModuleUsage:
    """Uses that a model's modules make of each other, gathered once.

    Args:
        model: the model; it must not change while this is in use.
        traced: whether a run of the model is watched, which shows what it reads.
    """

    def __init__(self, model: nn.Module, *, traced: bool = False) -> None:
        self._model = model
        self._reads = reads_of(model, traced=traced)
        self._holders: dict[int, list[tuple[nn.Module, str, torch.Tensor]]] = {}
        self._filed: dict[Hashable, torch.Tensor] = {}
        self._ties = declared_ties(model)
        for path, module in model.named_modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    values = self._values(module, name, tensor)
                    holder = (module, f"{path}.{name}".lstrip("."), values)
                    self._holders.setdefault(storage(values), []).append(holder)

    def check(self, path: str, module: nn.Module) -> None:
        """Refuse a layer for what surrounds it in the model.

        Raises:
            Refused: and why.
        """
        self._check_owners(path)
        for part, tensor in module._parameters.items():
            if tensor is not None:
                # A module that stands in several places is one module, whose replacement stands in
                # all of them. Only other modules that hold the tensor would keep the old weight.
                values = self._values(module, part, tensor)
                self._check_ties(values, part, lambda other, _: other is module)
                if is_tied(module, part):
                    raise Refused(f"tied: accelerate keeps its {part} with that of another module")
        if id(module) in self._reads:
            raise Refused(self._reads[id(module)])

    def check_parameter(self, path: str, module: nn.Module, name: str) -> None:
        """Refuse a parameter of the module at a path. Whoever reads it gets the product, too.

        Raises:
            Refused: and why.
        """
        self._check_owners(path)
        tensor = module._parameters[name]
        assert tensor is not None
        self._check_ties(tensor, name, lambda other, part: other is module and part == name)

    def _values(self, module: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return what stands for the values of a tensor, equal for tensors that share them."""
        # Of offloaded parameters each module has a tensor of its own, without values.
        values = source(module, name)
        if (id(module), name) in self._ties and values is not None:
            values = source(*self._ties[id(module), name])
        if isinstance(values, torch.Tensor):
            return values
        return tensor if values is None else self._filed.setdefault(values, tensor)

    def _check_owners(self, path: str) -> None:
        for owner_path, owner in _owners(self._model, path):
            if isinstance(owner, nn.MultiheadAttention):
                raise Refused("owned by nn.MultiheadAttention, which reads its weight itself")
            if isinstance(owner, torch.jit.ScriptModule):
                raise Refused(f"inside the ScriptModule {owner_path!r}")
            name = type(owner).__name__
            if name in (*_WRAPPERS, "FullyShardedDataParallel"):
                raise Refused(f"inside the {name} wrapper {owner_path!r}")
            if parametrize.is_parametrized(owner) or name == "ParametrizationList":
                raise Refused(f"inside the parametrized module {owner_path!r}")

    def _check_ties(
        self, tensor: torch.Tensor, part: str, is_part_of: Callable[[nn.Module, str], bool]
    ) -> None:
        for other, where, shared in self._holders[storage(tensor)]:
            if not is_part_of(other, where.rpartition(".")[2]) and overlap(shared, tensor):
                raise Refused(f"tied: its {part} is also {where!r}")


def _owners(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    parts = path.split(".") if path else []
    owner = model
    for depth, part in enumerate(parts):
        # The owners from the root down to the parent, without the layer itself.
        yield ".".join(parts[:depth]), owner
        owner = owner._modules[part]  # type: ignore[assignment]  # a path has no None
