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

from rankfold_jax.layouts.chain_reader import fixed
from rankfold_jax.linen.interpolative import Interpolative
from rankfold_jax.linen.layers import ATTEND, CALLS, SETUP, StageSpec, make, raw
from rankfold_jax.versions import CALL, check_call, replacements

T = TypeVar("T")
Path: TypeAlias = tuple[str, ...]
Geometry: TypeAlias = tuple[tuple[str, str], ...]
Table: TypeAlias = tuple[tuple[Path, tuple[StageSpec, ...], Geometry], ...]

_TABLE = "_rankfold_table"
check_call(nn.Module)


@dataclass(frozen=True)
class _Active:
    """Compressed modules whose methods are running, in this context.

    While it is noted what fires, a token of its own sees to it that everything is traced anew.
    """

    roots: tuple[tuple[Table, Path], ...] = ()
    fired: set[Path] | None = None
    token: object = None


_active: ContextVar[_Active] = ContextVar("_active", default=_Active())  # noqa: B039  # the default is frozen
"""It is set in contexts of their own, which are left by one step of the interpreter's: an interrupt
in the middle of a model's call leaves nothing behind that would replace layers of another one."""


def compressed(module: nn.Module, table: Table) -> nn.Module:
    """Return the module with the layers at some paths replaced.

    Args:
        module: unbound.
        table: path of each layer replaced, the stages of its chain, and its `geometry`.
    """
    fields = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        # A dataclass is made anew from its fields; `parent` is set by Flax where it is made.
        if field.init and field.name != "parent"
    }
    cls: Any = type(module)
    wrapped: nn.Module = subclass(cls, table)(**fields, parent=None)
    return wrapped


@cache
def subclass(cls: Any, table: Table) -> type[nn.Module]:
    """Return the class of compressed modules for one plan."""

    def call(self: Any, function: Any, args: Any, kwargs: Any) -> Any:
        usual = getattr(super(wrapped, self), CALL)
        if self.scope is None:
            # Unbound there are no variables, and no layers to replace.
            return usual(function, args, kwargs)
        return _replacing((table, tuple(self.scope.path)), partial(usual, function, args, kwargs))

    def reduce(self: Any) -> Any:
        if self.scope is not None:
            # A bound module refers to its scope; Flax decides whether that can be pickled.
            return object.__reduce_ex__(self, 2)
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.init and field.name != "parent"
        }
        return _restored, (cls, table, fields)

    # The name of the class is that of the original: Flax derives names of submodules from it, under
    # which parameters are stored.
    names = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    wrapped: Any = type(cls.__name__, (cls,), names)
    setattr(wrapped, CALL, call)  # set here, as Flax wraps what a class is defined with
    wrapped.__reduce__ = reduce
    setattr(wrapped, _TABLE, table)
    return wrapped  # type: ignore[no-any-return]  # `type` makes classes unknown to mypy


def specs_of(module: nn.Module, path: Path) -> tuple[StageSpec, ...] | None:
    """Return the stages of the chain of a compressed module at a path; None without one."""
    for cls in type(module).__mro__:
        for replaced, specs, _ in vars(cls).get(_TABLE, ()):
            if replaced == path:
                return specs  # type: ignore[no-any-return]  # `vars` is untyped
    return None


def _restored(cls: Any, table: Table, fields: dict[str, Any]) -> nn.Module:
    return subclass(cls, table)(**fields, parent=None)


def noting(function: Callable[[], object]) -> set[Path]:
    """Return the paths at which chains take the place of layers while a function runs."""
    fired: set[Path] = set()

    def call() -> None:
        # A fresh token is part of the key of JAX's caches: a function traced before would not be
        # traced again, and nothing in it would fire.
        _active.set(replace(_active.get(), fired=fired, token=object()))
        function()

    copy_context().run(call)
    return fired


def _replacing(root: tuple[Table, Path], function: Callable[[], T]) -> T:
    """Run a function while the layers of a compressed module are replaced."""
    now = _active.get()
    # A method that calls another one of the same module: the interceptor is there already.
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
        # A compressed module may be a submodule of another model. Paths of its plan count from
        # where it is.
        path = tuple(module.scope.path)
        depth = len(self._root)
        entry = self._table.get(path[depth:]) if path[:depth] == self._root else None
        if entry is None or not _is_theirs(module, context.orig_method.func, entry[0]):
            return function(*args, **kwargs)
        specs, before = entry
        _check_geometry(path[depth:], module, specs, before)
        # Noted before the stages run, so that one that fails has fired all the same.
        if active.fired is not None:
            active.fired.add(path[depth:])
        return _replaced(module, specs, context.orig_method.func, args, kwargs)


def _check_geometry(
    path: Path, module: nn.Module, specs: tuple[StageSpec, ...], before: Geometry
) -> None:
    """Check that a layer is still the one that its chain was made for.

    Raises:
        RankfoldError: the model makes it with other sizes or another geometry.
    """
    for name, was in before:
        # As texts, which the plan holds: they are hashable whatever the values are.
        now = repr(getattr(module, name))
        if now != was:
            what = f"{name} of compressed layer {'.'.join(path)!r} (from {was} to {now})"
            raise fixed(what, (f"lr{index}" for index in range(len(specs))))


def _is_theirs(module: Any, function: Any, specs: tuple[StageSpec, ...]) -> bool:
    """True if a method is one that the stages of a chain take the place of."""
    if not specs[0].ruled:
        # By function: subclasses that override the call compute something else.
        return function in CALLS or function in (SETUP, ATTEND)
    cls = type(module)
    # A layer of a rule that has no `setup` of its own inherits an empty one, which all modules
    # share.
    is_setup = raw(cls.setup) is not raw(nn.Module.setup) and function is raw(cls.setup)
    return is_setup or function is raw(cls.__call__)


def _replaced(
    module: Any, specs: tuple[StageSpec, ...], method: Any, args: Any, kwargs: Any
) -> Any:
    names = [f"lr{index}" for index in range(len(specs))]
    cls = type(module)
    # Embed makes its table in `setup`, other stock layers their kernels in a compact call. Flax
    # allows submodules only there.
    in_setup = isinstance(module, nn.Embed)
    if specs[0].ruled:
        in_setup = not getattr(raw(cls.__call__), "compact", False)
    if method in (SETUP, raw(cls.setup)):
        if not in_setup:  # its layers are made where it is called
            return None
        for name, spec in zip(names, specs, strict=True):
            setattr(module, name, _stage(spec, module, name, None))
        return None
    if in_setup:
        layers = [getattr(module, name) for name in names]
    else:
        layers = [_stage(spec, module, name, name) for name, spec in zip(names, specs, strict=True)]
    x = args[0] if args else next(iter(kwargs.values()))
    if method is ATTEND:
        table, *behind = layers
        # The transposed table of a chain: its last factor is applied first. `specs` has one more,
        # for the table itself.
        for layer, spec in zip(reversed(behind), reversed(specs), strict=False):
            assert spec.form is not None
            x = x @ _matrix(layer, spec.form.kernel_shape[0], x.dtype).T
        return table.attend(x)
    for layer in layers:
        x = layer(x)
    return x


def _stage(spec: StageSpec, module: nn.Module, name: str, label: str | None) -> nn.Module:
    """Make the layer of a stage, which draws its kernel unless it is there."""
    if module.has_variable("params", name):
        # Flax asks the initializer for the shape all the same: to trace one that draws would take
        # longer than the layer does.
        return make(spec, module, label, nn.initializers.zeros)
    return make(spec, module, label)


def _matrix(layer: Any, rows: int, dtype: Any) -> Any:
    """Return the matrix (in, out) of a layer without a bias, also where it is a chain itself."""
    if not isinstance(layer, Interpolative) and layer.has_variable("params", "kernel"):
        kernel = nn.meta.unbox(layer.get_variable("params", "kernel"))
        return layer.promote_dtype(kernel, dtype=layer.dtype or dtype)[0]
    return layer(jnp.eye(rows, dtype=dtype))
