"""Replacement of a layer: an `nn.Sequential` that goes on describing the layer.

Parents ask a layer for `stride`, `in_features` or `weight.dtype`. The replacement answers: its
sizes and geometry are those of the layer, and its `weight` and `bias` tell dtype, device and shape,
as they are now, but have no values. They also answer what needs none: views, new tensors like them.
What would have no effect (setting a stride) or no meaning (the values of a weight that is not
there) is an error.
"""

from __future__ import annotations

import copy
import pydoc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankfold.errors import RankfoldError
from rankfold_torch.torch_internals import is_traced

TENSORS = ("weight", "bias")
# fmt: off
PLAIN = frozenset(
    (
        "dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu",
        "is_xpu", "is_mps", "is_meta", "is_sparse", "is_sparse_csr", "is_mkldnn", "is_quantized",
        "is_nested", "is_leaf", "itemsize", "nbytes", "size", "dim", "ndimension", "numel",
        "nelement", "element_size", "stride", "storage_offset", "is_contiguous", "is_inference",
        "is_floating_point", "is_complex", "is_signed", "get_device", "names", "has_names",
        "_version", "grad_fn", "retains_grad", "__len__",
    )
)
"""Names of what can be asked of a tensor that has no values."""
LIKE = frozenset(
    (
        "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like",
        "randint_like",
    )
)
NEW = LIKE | {"new_tensor", "new_zeros", "new_ones", "new_empty", "new_full"}
"""Functions that make a tensor like another one without a look at its values."""
VIEWS = frozenset(
    (
        "data", "detach", "T", "mT", "t", "transpose", "permute", "swapaxes", "movedim", "view",
        "reshape", "flatten", "squeeze", "unsqueeze", "expand", "narrow", "select",
    )
)
# fmt: on
"""Names of what gives a tensor in the same memory, which is without values, too."""
_ALIKE = NEW | {"is_shared", "is_pinned"}
CONSTANTS = frozenset(
    (*nn.Linear.__constants__, *nn.Embedding.__constants__, *nn.Conv2d.__constants__, "transposed")
)
"""Attributes that the computation of a stock layer is made with."""
_LIKE = ("to", "type_as")
_SHAPE = "dense_shape"
_PATH = "dense_path"
_NUMBERS = (bool, int, float, str, tuple, torch.dtype, type(None))


def carried(layer: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of a layer for its replacement: sizes, geometry, additions."""
    plain = vars(nn.Module())
    return {
        name: value
        for name, value in vars(layer).items()
        if name in CONSTANTS or (name not in plain and isinstance(value, _NUMBERS))
    }


class AbsentTensor(torch.Tensor):
    """Weight or bias as far as it is known without values: dtype, device, shape and the like."""

    _is_param = True  # what isinstance(..., nn.Parameter) looks at
    label: str
    path: str

    @classmethod
    def like(
        cls, label: str, path: str, shape: Sequence[int], tensor: torch.Tensor
    ) -> AbsentTensor:
        """Return one of a shape, with dtype, device and `requires_grad` of another tensor.

        Args:
            label: weight or bias.
            path: of its layer in the model.
            shape: of it.
            tensor: the other one.
        """
        # A wrapper has no storage: code that goes past `__torch_function__` finds no memory to
        # read.
        absent: AbsentTensor = cls._make_wrapper_subclass(
            cls,
            shape,
            dtype=tensor.dtype,
            device=tensor.device,
            requires_grad=tensor.requires_grad,
        )
        absent.label = label
        absent.path = path
        return absent

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes more
        """Return a text with label, shape and dtype."""
        return f"<{self.label} of a compressed layer: {tuple(self.shape)}, {self.dtype}>"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer what is known; any other use of the tensor is an error."""
        name = getattr(func, "__name__", str(func))
        # An attribute arrives as `__get__` of its descriptor, which knows the name.
        is_attribute = name == "__get__"
        if is_attribute:
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        first = args[0] if args else None
        as_pattern = name in _LIKE and not isinstance(first, cls)  # x.to(weight): its dtype
        alone = isinstance(first, cls) and len(list(_absent((args, kwargs)))) == 1
        # `weight.type()` tells a type, `weight.type(dtype)` converts.
        is_type = name == "type" and not (args[1:] or kwargs)
        # Else the calls would come back here.
        with torch._C.DisableTorchFunctionSubclass():
            if is_attribute and name == "grad":  # the function of that name differentiates
                return None
            if name in PLAIN or as_pattern:
                return func(*args, **(kwargs or {}))
            # Values of further arguments go into what is new.
            if name == "result_type" or (alone and (is_type or name in _ALIKE)):
                return func(*map(_stand_in, args), **(kwargs or {}))
            if isinstance(first, cls) and alone and name in VIEWS:
                view = func(_stand_in(first), *args[1:], **(kwargs or {}))
                return cls.like(first.label, first.path, view.shape, view)
        raise NoValuesError.of((args, kwargs), name)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch types the one that is switched off
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Raise an error: no operation has a result."""
        raise NoValuesError.of((args, kwargs), str(func))


class NoValuesError(RankfoldError):
    """Values of a weight or a bias are asked for that is not there.

    Attributes:
        path: of the layer.
        reason: for leaving it alone.
    """

    path: str
    reason: str

    @classmethod
    def of(cls, arguments: object, use: str) -> NoValuesError:
        """Return the error of a function that is given such a tensor, at any depth."""
        absent = next(_absent(arguments))
        exclude = f"exclude={absent.path!r}" if absent.path else "exclude= for this layer"
        error = cls(
            f"the {absent.label} of a compressed layer has no values, which {use!r} needs: they "
            f"are in its stages, layer[0] and so on; or compress with {exclude}"
        )
        error.path = absent.path
        error.reason = f"the values of its {absent.label} are needed by {use!r} in the run"
        return error


def _absent(values: object) -> Iterator[AbsentTensor]:
    if isinstance(values, AbsentTensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _absent(value)
    elif isinstance(values, Mapping):
        yield from _absent(list(values.values()))


def _stand_in(value: Any) -> Any:
    """Return a plain tensor for one that is absent: like it, with whatever values."""
    if not isinstance(value, AbsentTensor):
        return value
    memory = torch.empty((), dtype=value.dtype, device=value.device)
    return memory.requires_grad_(value.requires_grad).expand(value.shape)


def _described(label: str) -> property:
    """Return a property that describes the weight or the bias of the layer."""

    def read(layer: LowRankSequential) -> torch.Tensor | None:
        shape = vars(layer).get(_SHAPE)
        pattern: Any = next(layer.parameters(), None)
        if shape is None or pattern is None:  # a slice of the stages, or quantized ones
            raise AttributeError(label)
        if label == "bias":
            # The bias of the layer is that of the last stage, with the values that it has.
            pattern = layer[-1].bias
            if pattern is None:
                return None
            shape = pattern.shape
        if torch.compiler.is_compiling() or is_traced():
            return _unknown(shape, pattern)  # tracers take no tensor but a plain one
        return AbsentTensor.like(label, vars(layer).get(_PATH, ""), shape, pattern)

    return property(read, doc=f"Dtype, device and shape of the {label} of the layer; no values.")


def _unknown(shape: Sequence[int], pattern: torch.Tensor) -> torch.Tensor:
    """Return a plain tensor of NaN in the memory of one element, which can pass for no weight."""
    return pattern.detach().new_full((), torch.nan).expand(tuple(shape))


class LowRankSequential(nn.Sequential):
    """Stages of a compressed layer, under the constants of the layer.

    In a pickle it is an `nn.Sequential` wherever rankfold is not installed.

    Raises:
        RankfoldError: a constant of the layer, its weight or its bias is set.
    """

    # TorchScript compiles all properties of a module unless they are named here.
    __jit_unused_properties__ = TENSORS
    weight = _described("weight")
    bias = _described("bias")

    @staticmethod
    def of(stages: Sequence[nn.Module], layer: nn.Module) -> LowRankSequential:
        """Return the stages as a module for the place of a layer."""
        built = LowRankSequential(*stages)
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        vars(built).update({**carried(layer), _SHAPE: tuple(weight.shape)})
        return built

    def at(self, path: str) -> LowRankSequential:
        """Note the path of the layer in the model, which errors name, and return the module."""
        vars(self)[_PATH] = path
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; refuse what would have no effect."""
        attributes = vars(self)
        is_constant = name in CONSTANTS and name in attributes
        # While it is put together there is no shape yet and everything can be set. Setting a
        # constant to the value that it has is in order.
        if _SHAPE in attributes and (name in TENSORS or is_constant):
            before = attributes.get(name)
            same = name in attributes and type(value) is type(before) and value == before
            if not same:
                raise RankfoldError(
                    f"{name} of a compressed layer cannot be set, it would have no effect: its "
                    f"stages {', '.join(type(stage).__name__ for stage in self)} compute with "
                    f"their own; set {name} on the original layer, then compress"
                )
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Return a state for pickles that is read as an `nn.Sequential` without rankfold."""
        state = dict(vars(self))
        for name in TENSORS if _SHAPE in state else ():
            tensor = getattr(self, name, None)
            if tensor is not None:  # what parents may ask for where this class is not known
                tensor = _unknown(tensor.shape, next(self.parameters()))
            state[name] = tensor
        # `pydoc.locate` gives None for a module that cannot be imported; `getattr` of None then
        # gives its default, nn.Sequential. Both are known to any Python that reads the pickle.
        module = _Call(pydoc.locate, (__name__,))
        return _Call(getattr, (module, type(self).__name__, nn.Sequential)), (), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state that a pickle holds, but for the tensors without values."""
        stored = {name: value for name, value in state.items() if name not in TENSORS}
        super().__setstate__(stored)  # type: ignore[no-untyped-call]  # torch's own

    def __copy__(self) -> LowRankSequential:
        """Return a shallow copy of the same class."""
        # `copy` would go by `__reduce_ex__`, whose state is for pickles, with NaN for the weights.
        copied = LowRankSequential.__new__(LowRankSequential)
        vars(copied).update(vars(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> LowRankSequential:
        """Return a deep copy of the same class."""
        copied = memo[id(self)] = LowRankSequential.__new__(LowRankSequential)
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


@dataclass(frozen=True)
class _Call:
    """Call of a function of the standard library that is made when a pickle is read."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments

    def __call__(self) -> Any:
        """Make an object as the class would, which is what pickles call."""
        return self.function(*self.arguments)()
