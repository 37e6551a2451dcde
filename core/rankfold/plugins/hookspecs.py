"""The plugin contract: what a plugin may declare, and the version of that contract.

A plugin is an entry point of the group `rankfold` that names a *declaration module*: functions
marked with `hookimpl`, a module constant `RANKFOLD_API`, and no import of a framework. The
built-in decompositions, policies and adapters are declared in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pluggy

from rankfold.adapters.tensor_rules import TensorRule
from rankfold.decompose.base import Decomposition
from rankfold.plan.plan import LayerPlan, Plan
from rankfold.policies.base import Policy

PROJECT = "rankfold"
API = (1, 7)
"""Version of this contract. A plugin states the one it was written for as `RANKFOLD_API`: the same
major and a minor not above ours is accepted."""

# pluggy calls a hook with those of its arguments that an implementation names, so that later minors
# may add arguments without breaking plugins.
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class FileFormat:
    """A kind of checkpoint that a framework's plugin reads: a file, or a folder.

    Attributes:
        kind: in words, for messages: "a file of torch.save()".
        suffixes: of such files, the usual one first; () for a folder.
        signatures: with what such files begin, whatever their names; () for a folder.
        read: "module:function" from a path to a `rankfold.storage.safetensors_file.File`. Nothing
            that such a file holds may be run.
        install: the command that installs what `read` needs.
        keyed: whether such a file may hold several states, and `read` takes the key of one, too.
        marker: the name of the file by which a folder is known to be such a checkpoint; "" for a
            file.
    """

    kind: str
    suffixes: tuple[str, ...]
    signatures: tuple[bytes, ...]
    read: str
    install: str
    keyed: bool = False
    marker: str = ""


@dataclass(frozen=True)
class ModelFile:
    """A kind of file that holds a whole model, structure and weights, of one framework.

    Such a file is compressed into another one of its kind. What `read` gives is a model that the
    adapter handles. Nothing that such a file holds may be run.

    Attributes:
        kind: in words, for messages: "an ONNX model".
        suffixes: of such files, the usual one first.
        read: "module:function" from a path to the model.
        write: "module:function" of (model, path, plan, source) that writes a model, and its plan
            where such a file has a place for it; `source` is the path that the model was read
            from, or None.
        install: the command that installs what both need.
        plan: "module:function" from a path to the plan that `write` put there, or None where there
            is none; "" where such a file has no place for it.
    """

    kind: str
    suffixes: tuple[str, ...]
    read: str
    write: str
    install: str
    plan: str = ""


@dataclass(frozen=True)
class ModelFolder:
    """A kind of folder that a library opens as a model by itself: weights and a configuration.

    What rankfold writes of such a model, or of a checkpoint of one, is such a folder again.
    Functions are named as "module:function" and imported when they are called.

    Attributes:
        name: the word for the library.
        model_types: "module:Class" of its models, as in `AdapterSpec`.
        settings: the entries of config.json by which a checkpoint is known to be one of its.
        weights: with what the names of its safetensors files begin: "model".
        save: (model, folder) writes a compressed model into an empty folder: its weights by the
            names of its state, and what goes beside them.
        beside: (folder, settings, plan) gives the files that go beside the weights of a compressed
            checkpoint by name, their content or the path of the file to copy, for the folder and
            the config.json of the checkpoint.
        conversions: (settings, tensors) gives the `Conversion`s of tensors that the library does
            not load as they are, for type and shape of each tensor in the files by name.
        refusals: (settings, layers) says which layers of a checkpoint must be left alone in the
            model, and why, for the name of the weight and the op, without values, of each by path.
        names: (model, settings, layers, tensors) gives the paths of layers and the names of
            tensors in a compressed model by those in the files: two mappings.
    """

    name: str
    model_types: tuple[str, ...]
    settings: tuple[str, ...]
    weights: str
    save: str
    beside: str
    conversions: str
    refusals: str
    names: str


@dataclass(frozen=True)
class Demo:
    """The network that the demo trains and compresses in a framework.

    Attributes:
        name: the word for the framework on the command line.
        target: "module:Class" of a `rankfold.cli.demo.DemoNetwork`, called with a seed.
        install: the command that installs what it needs.
    """

    name: str
    target: str
    install: str


@dataclass(frozen=True)
class AdapterSpec:
    """Declares a framework adapter without importing the framework.

    Attributes:
        name: the adapter's name, as in layer rules.
        model_types: "module:Class" of the model classes it handles. They are looked up only in
            modules that are already imported: a model of a framework cannot exist otherwise.
        target: "module:Class" of the adapter, imported when a model is recognised and called
            without arguments.
        formats: checkpoints besides safetensors files that the plugin reads.
        demo: what the demo shows of the framework.
        model_files: files with whole models that the plugin reads and writes.
        install: the command that installs the framework.
        wrapper_parts: what wrappers of a model add to the names of its tensors and layers, wherever
            they wrap a module: parts of a name between dots.
        wrapper_fronts: what they put in front of all names, as such parts.
    """

    name: str
    model_types: tuple[str, ...]
    target: str
    formats: tuple[FileFormat, ...] = ()
    demo: Demo | None = None
    model_files: tuple[ModelFile, ...] = ()
    install: str = ""
    wrapper_parts: tuple[str, ...] = ()
    wrapper_fronts: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerRule:
    """Teaches an adapter one more layer class.

    Attributes:
        adapter: name of the adapter.
        layer: "module:Class" of the layer class; matched exactly, subclasses are not. The
            framework's stock layers are the adapter's own.
        read: "module:function" from a layer to the op it stands for.
        build: "module:function" from (chain, layer) to the module that replaces it; None for the
            adapter's own.
        folds: what the layer computes its weight by, in words ("weight standardisation"), where
            `read` gives the weight that comes of it; "" where that is the layer's own. Plans say
            so, for fine-tuning goes on without it; and nothing is written back into such a layer.
    """

    adapter: str
    layer: str
    read: str
    build: str | None = None
    folds: str = ""


@dataclass(frozen=True)
class ParameterRule:
    """Teaches an adapter parameters that are layers of their own, used by their module directly.

    Such a parameter is a matrix, or a stack of matrices along its leading axes: (*stack, rows,
    columns), as the weights of a mixture of experts are. Its layer is `Linear(groups=)`, one group
    a matrix, rows being the output channels; where they are the input, the ranks and the error are
    the same. Its path is that of the module and the name of the parameter, joined by a dot.

    Attributes:
        adapter: name of the adapter.
        layer: a glob pattern of "module:Class" of the owning module's class; subclasses are not
            matched.
        names: of the parameters.
    """

    adapter: str
    layer: str
    names: tuple[str, ...]


Rule: TypeAlias = LayerRule | ParameterRule | TensorRule


@hookspec
def rankfold_adapters() -> Iterable[AdapterSpec]:  # type: ignore[empty-body]  # a specification
    """Frameworks: how to recognise their models and where their adapter is."""


@hookspec
def rankfold_model_folders() -> Iterable[ModelFolder]:  # type: ignore[empty-body]  # same
    """Folders that a library opens as models: how to write compressed ones."""


@hookspec
def rankfold_decompositions() -> Iterable[Decomposition]:  # type: ignore[empty-body]  # same
    """Decompositions, each usable by its name in `methods=`."""


@hookspec
def rankfold_policies() -> Iterable[type[Policy]]:  # type: ignore[empty-body]  # same
    """Rank policies, each usable by its name on the command line."""


@hookspec
def rankfold_layer_rules() -> Iterable[Rule]:  # type: ignore[empty-body]  # same
    """Layers that an adapter does not know by itself, in models and in checkpoints."""


@hookspec
def rankfold_layer_done(report: LayerPlan) -> None:
    """Called by compress and apply after each layer, with what was done to it and why."""


@hookspec
def rankfold_model_done(model: Any, plan: Plan) -> None:
    """Called with every model that compress, apply or load give, and the plan that it follows.

    It may leave a note of the plan at the model; weights and structure must stay as they are. Of a
    model that was compressed before, the plan is that of the last compression.
    """


@hookspec
def rankfold_model_expanded(model: Any, plan: Plan) -> None:
    """Called with every model that `Compressed.expanded` gives: it follows the plan no longer."""
