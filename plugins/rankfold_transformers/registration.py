"""Make "rankfold" a method that `from_pretrained` knows, without importing transformers.

Whoever has rankfold may import transformers before it, after it, or never. Where it is imported
already the method is registered at once; else once its registry of methods has been imported. So it
is with what watches over `from_pretrained`, and the module of that.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_REGISTRY = "transformers.quantizers.auto"
_QUANTIZER = "rankfold_transformers.pretrained"
_MODELS = "transformers.modeling_utils"
_WATCH = "rankfold_transformers.unplanned_chains"


def register() -> None:
    """Register the method now, or as soon as transformers' registry is imported; once."""
    for awaited in (_REGISTRY, _MODELS):
        if awaited in sys.modules:
            _register(awaited)
        elif not any(isinstance(f, _Awaited) and f.name == awaited for f in sys.meta_path):
            # First in line, since the finders behind it would find the module themselves.
            sys.meta_path.insert(0, _Awaited(awaited))


def is_registered() -> bool:
    """Return whether transformers is imported and knows the method."""
    return _QUANTIZER in sys.modules


def _register(awaited: str) -> None:
    if awaited == _MODELS:
        importlib.import_module(_WATCH)
    elif hasattr(sys.modules[_REGISTRY], "register_quantizer"):  # transformers has it from 4.49 on
        importlib.import_module(_QUANTIZER)


class _Awaited(MetaPathFinder):
    """Finds one module, as Python itself does, to be there when it has been imported."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        # Asked directly: going through `importlib` would come back here.
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            # Its work is done, whatever comes of the import; a finder that stays would slow every
            # later one.
            spec.loader = _Registering(spec.loader)
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        return spec


class _Registering(Loader):
    """Loads a module as its own loader does, and registers the method then."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        # Put back first, as the module may look at its own loader, and reloading it should be as
        # ever.
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module.__name__)
