"""A Linen module in which some layers are replaced by chains, its own class unmodified.

The compressed module is an instance of a subclass made for the plan. Whatever method of it is
called runs under an interceptor: where the interceptor sees the computation of a planned layer it
creates the layers of the chain within that layer instead, so that their parameters lie at
`{'layer': {'lr0': ..., 'lr1': ...}}`. So init, eval_shape, scan, vmap, remat, jit, bind and
tabulate see a chain wherever they saw the layer. The plan is part of the key of JAX's caches of
traces (`versions.replacements`): a trace compiled without it is never taken for one with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeAlias, TypeVar

import jax.numpy as jnp
from flax import linen as nn

from rankfold.errors import RankfoldError
from rankfold_jax.layouts.chain_reader import fixed
from rankfold_jax.linen.layers import ATTEND, CALLS, SETUP, StageSpec, make, raw
from rankfold_jax.versions import replacements

T = TypeVar("T")
Path: TypeAlias = tuple[str, ...]
Geometry: TypeAlias = tuple[tuple[str, str], ...]
Table: TypeAlias = tuple[tuple[Path, tuple[StageSpec, ...], Geometry], ...]

_TABLE = "_rankfold_table"

if not hasattr(nn.Module, "_call_wrapped_method"):
    import flax

    raise RankfoldError(
        f"flax {flax.__version__} calls the methods of Linen modules in a way that this version of "
        "rankfold does not know; install flax 0.12 or a newer rankfold"
    )


@dataclass(frozen=True)
class _Active:
    """The compressed modules whose methods are running.

    While it is noted what fires, a token of its own sees to it that everything is traced anew.
    """

    roots: tuple[tuple[Table, Path], ...] = ()
    fired: set[Path] | None = None
    token: object = None


_active: ContextVar[_Active] = ContextVar("_active", default=_Active())  # noqa: B039  # frozen
"""It is set in contexts of their own, which are left by one step of the interpreter's: an interrupt
in the middle of a model's call leaves nothing behind that would replace layers of another one."""


def compressed(module: nn.Module, table: Table) -> nn.Module:
    """The module with the layers at some paths replaced.

    Args:
        module: unbound.
        table: path of each layer replaced, the stages of its chain, and its `geometry`.
    """
    fields = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.init and field.name != "parent"
    }
    cls: Any = type(module)
    wrapped: nn.Module = subclass(cls, table)(**fields, parent=None)
    return wrapped


@cache
def subclass(cls: Any, table: Table) -> type[nn.Module]:
    """The class of compressed modules for one plan."""

    def call(self: Any, function: Any, args: Any, kwargs: Any) -> Any:
        if self.scope is None:
            return super(wrapped, self)._call_wrapped_method(function, args, kwargs)
        usual = super(wrapped, self)._call_wrapped_method
        return _replacing((table, tuple(self.scope.path)), partial(usual, function, args, kwargs))

    def reduce(self: Any) -> Any:
        if self.scope is not None:
            return object.__reduce_ex__(self, 2)
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.init and field.name != "parent"
        }
        return _restored, (cls, table, fields)

    names = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    wrapped: Any = type(cls.__name__, (cls,), names)
    wrapped._call_wrapped_method = call  # set here, as Flax wraps what a class is defined with
    wrapped.__reduce__ = reduce
    setattr(wrapped, _TABLE, table)
    return wrapped  # type: ignore[no-any-return]  # `type` makes classes unknown to mypy


def specs_of(module: nn.Module, path: Path) -> tuple[StageSpec, ...] | None:
    """The stages of the chain that a compressed module has at a path; None where it has none."""
    for cls in type(module).__mro__:
        for replaced, specs, _ in vars(cls).get(_TABLE, ()):
            if replaced == path:
                return specs  # type: ignore[no-any-return]  # `vars` is untyped
    return None


def _restored(cls: Any, table: Table, fields: dict[str, Any]) -> nn.Module:
    return subclass(cls, table)(**fields, parent=None)


def noting(function: Callable[[], object]) -> set[Path]:
    """The paths at which chains are put in the place of layers while a function runs."""
    fired: set[Path] = set()

    def call() -> None:
        _active.set(replace(_active.get(), fired=fired, token=object()))
        function()

    copy_context().run(call)
    return fired


def _replacing(root: tuple[Table, Path], function: Callable[[], T]) -> T:
    """What a function gives while the layers of a compressed module are replaced."""
    now = _active.get()
    if root in now.roots:
        return function()
    inside = replace(now, roots=(*now.roots, root))

    def call() -> T:
        _active.set(inside)
        with replacements((inside.roots, inside.token)), nn.intercept_methods(_Interceptor(root)):
            return function()

    return copy_context().run(call)


class _Interceptor:
    def __init__(self, root: tuple[Table, Path]) -> None:
        self._owner = root
        self._table = {path: (specs, before) for path, specs, before in root[0]}
        self._root = root[1]

    def __call__(self, function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        active = _active.get()
        if self._owner not in active.roots:  # Flax was interrupted before it removed this
            return function(*args, **kwargs)
        if module.scope is None:
            return function(*args, **kwargs)
        path = tuple(module.scope.path)
        depth = len(self._root)
        entry = self._table.get(path[depth:]) if path[:depth] == self._root else None
        if entry is None or not _is_theirs(module, context.orig_method.func, entry[0]):
            return function(*args, **kwargs)
        specs, before = entry
        _check_geometry(path[depth:], module, specs, before)
        if active.fired is not None:
            active.fired.add(path[depth:])
        return _replaced(module, specs, context.orig_method.func, args, kwargs)


def _check_geometry(
    path: Path, module: nn.Module, specs: tuple[StageSpec, ...], before: Geometry
) -> None:
    """Sees to it that a layer is still the one that its chain was made for.

    Raises:
        RankfoldError: the model makes it with other sizes or another geometry.
    """
    for name, was in before:
        now = repr(getattr(module, name))
        if now != was:
            what = f"{name} of compressed layer {'.'.join(path)!r} (from {was} to {now})"
            raise fixed(what, (f"lr{index}" for index in range(len(specs))))


def _is_theirs(module: Any, function: Any, specs: tuple[StageSpec, ...]) -> bool:
    """Whether a method is one that the stages of a chain take the place of."""
    if not specs[0].ruled:
        return function in CALLS or function in (SETUP, ATTEND)
    cls = type(module)
    is_setup = raw(cls.setup) is not raw(nn.Module.setup) and function is raw(cls.setup)
    return is_setup or function is raw(cls.__call__)


def _replaced(
    module: Any, specs: tuple[StageSpec, ...], method: Any, args: Any, kwargs: Any
) -> Any:
    names = [f"lr{index}" for index in range(len(specs))]
    cls = type(module)
    in_setup = isinstance(module, nn.Embed)
    if specs[0].ruled:
        in_setup = not getattr(raw(cls.__call__), "compact", False)
    if method in (SETUP, raw(cls.setup)):
        if not in_setup:  # its layers are made where it is called
            return None
        for name, spec in zip(names, specs, strict=True):
            setattr(module, name, make(spec, module, None))
        return None
    if in_setup:
        layers = [getattr(module, name) for name in names]
    else:
        layers = [make(spec, module, name) for name, spec in zip(names, specs, strict=True)]
    x = args[0] if args else next(iter(kwargs.values()))
    if method is ATTEND:
        table, *behind = layers
        for layer, spec in zip(reversed(behind), reversed(specs), strict=False):
            assert spec.form is not None
            x = x @ _matrix(layer, spec.form.kernel_shape[0], x.dtype).T
        return table.attend(x)
    for layer in layers:
        x = layer(x)
    return x


def _matrix(layer: Any, rows: int, dtype: Any) -> Any:
    """The matrix (in, out) of a layer without a bias, also where it is a chain itself."""
    if layer.has_variable("params", "kernel"):
        kernel = nn.meta.unbox(layer.get_variable("params", "kernel"))
        return layer.promote_dtype(kernel, dtype=layer.dtype or dtype)[0]
    return layer(jnp.eye(rows, dtype=dtype))
