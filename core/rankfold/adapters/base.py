"""The protocols of an adapter, which reads layers of a framework into ops and builds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Protocol,
    runtime_checkable,
)

import numpy as np

from rankfold.linalg import Array
from rankfold.ops import Chain, Extent, Op

if TYPE_CHECKING:
    from rankfold.calibration.batches import Calibration
    from rankfold.calibration.moments import LayerMoments, RegressionSums
    from rankfold.linalg import Array
    from rankfold.progress import Advance


@dataclass(frozen=True)
class Trace:
    """Facts about a model from one forward pass.

    Attributes:
        extents: for each layer path, the extent of its input at each call.
        refusals: for some layer paths, why what was seen forbids replacing the layer.
        macs: for layers of which it is known, the multiply-accumulates of all calls; they count
            where a layer cannot be read as an op.
        outputs: the paths of the layers whose output is an output of the model: a value that it
            returns depends on that output and on no other activation, and has met no further
            weights, but biases, on its way. So reshaping, selecting, scaling, squashing and
            concatenating are all that happens to it. None where this is not known.
        uncounted: the paths of layers that are at work in the pass, but whose
            multiply-accumulates are known neither by `extents` nor by `macs`.
    """

    extents: Mapping[str, tuple[Extent, ...]]
    refusals: Mapping[str, str]
    macs: Mapping[str, int] = field(default_factory=dict)
    outputs: frozenset[str] | None = None
    uncounted: frozenset[str] = frozenset()


class LayerVisitor(Protocol):
    """Gives the chain of a layer, from the sums over its fitted and held-out positions."""

    def basis(self, path: str, groups: Sequence[int] | None = None, /) -> Array | None:
        """Return what the inputs of a layer are projected on for the sums; None for nothing.

        It is asked before the sums are made, which cost the square of the numbers in a row.

        Args:
            path: of the layer.
            groups: which groups the sums will be of; None for the layer.

        Returns:
            V (groups, d / positions, rank). A row x of an input, d numbers with the channels first
            and then some positions, goes into the sums as (V ⊗ 1)ᵀ x, rank times the positions.
        """

    def __call__(
        self,
        path: str,
        fit: RegressionSums | None,
        validation: RegressionSums | None,
        groups: Sequence[int] | None = None,
        /,
    ) -> Chain:
        """Return the chain of a layer, or of some of its groups.

        Args:
            path: of the layer.
            fit: sums over fitted positions.
            validation: sums over held-out ones.
            groups: which groups the sums are of, and the chain is to be of; None for the layer.
        """


class ReadsLayers(Protocol):
    """Reads layers of a model into ops: all that a plan takes.

    A model is whatever the framework calls so; paths are the framework's own names, joined by dots.
    An instance serves one call of plan, apply, compress or load. Where example inputs are given
    `trace` is called before anything else, so that an adapter can keep what it learns there.
    """

    def layers(self, model: Any) -> Mapping[str, str]:
        """Return every layer with weights that could be decomposed, in order: path to class name.

        Raises:
            RankfoldError: the model as a whole cannot be compressed, or shows its layers only when
                it is called and `trace` was not.
        """

    def size(self, model: Any) -> int:
        """Return the number of parameters of the model, shared and tied ones counted once."""

    def aliases(self, model: Any, path: str) -> tuple[str, ...]:
        """Return the further paths under which a shared layer is found."""

    def read(self, model: Any, path: str) -> Op:
        """Return the layer as an op; with a `rankfold.ops.blank` weight where it has no values yet.

        Raises:
            Refused: the layer must be left alone, and why.
        """

    def trace(self, model: Any, inputs: Any) -> Trace:
        """Run the model once on example inputs, leaving it as it was.

        Raises:
            RankfoldError: the model fails on these inputs.
        """


class Adapter(ReadsLayers, Protocol):
    """Reads layers of one framework into ops, and builds layers of that framework from ops.

    A module is whatever the framework calls so.
    """

    def build(self, model: Any, path: str, chain: Chain) -> Any:
        """Return a native module for the chain, with dtype, device, mode and so on as the layer's.

        Raises:
            Refused: the framework cannot express the chain.
        """

    def run(self, module: Any, x: Array) -> Array:
        """Return the output of a module that `build` gave, in float64, for a check against its op.

        The input is one of `rankfold.ops.reference.forward`: float64 (rows, in) for a `Linear`,
        integers (rows,) for an `Embedding`, float64 (batch, in, *spatial) for a convolution.
        """

    def precision(self, model: Any, path: str) -> float:
        """Return the machine epsilon of the layer's own dtype."""

    def replace(self, model: Any, modules: Mapping[str, Any], *, inplace: bool) -> Any:
        """Return the model with these modules in place of the layers: a copy, unless inplace.

        Raises:
            RankfoldError: it cannot be copied, or something holds a layer where no other can take
                its place; a model to be changed is then unchanged.
        """

    def save_weights(self, model: Any, file: Path) -> None:
        """Write every parameter and buffer to a safetensors file.

        Raises:
            RankfoldError: the state cannot be stored in such a file.
            OSError: the file cannot be written.
        """

    def load_weights(self, model: Any, file: Path, *more: Path) -> Any:
        """Return the model with the weights of a file, after checking every name, shape and dtype.

        The model itself is filled and returned where it can be changed.

        Args:
            model: of the structure that was saved.
            file: to read.
            more: further files, where the weights are in several.

        Raises:
            RankfoldError: file and model do not fit; the model is then unchanged.
        """


@runtime_checkable
class Checked(Protocol):
    """Optional: finds layers that stay at work after `replace`."""

    def replaced(
        self, model: Any, modules: Mapping[str, Any], *, inplace: bool
    ) -> tuple[Any, Mapping[str, str]]:
        """Replace layers and check that none of them is still held or called.

        Where `trace` was called, the result is run once on the same inputs.

        Returns:
            The model, and by path of each layer that must be left alone, why. Where there is such a
            layer, the model is of no use, and a model to be changed is as it was.

        Raises:
            RankfoldError: as for `replace`.
        """


@runtime_checkable
class Distributed(Protocol):
    """Optional: layers are read in the process that plans them and need not travel."""

    def reader(self, model: Any, path: str) -> Callable[[], Op]:
        """Return a picklable function that reads a layer in another process, as `read` does."""


@runtime_checkable
class Folding(Protocol):
    """Optional: says where `read` folds something into a weight."""

    def folded(self, model: Any, path: str) -> str:
        """Say in words how the layer computes the op's weight; "" where it stores it."""


@runtime_checkable
class BuildsInterpolations(Protocol):
    """Optional: chains may have interpolative stages (`rankfold.ops.interpolation`).

    `build` then gives them modules that store `stored_weight` alone. To an adapter without it, and
    for layers of which it says why not, no such chain is ever given.
    """

    def why_not_interpolated(self, model: Any, path: str) -> str:
        """Return why a layer takes no interpolative stages; "" where it does."""


@runtime_checkable
class CountsParameters(Protocol):
    """Optional: counts the parameters that leave the model with a layer, beside its op's, too."""

    def parameters(self, model: Any, path: str, op: Op) -> int:
        """Return the number of parameters of a layer, those folded into a weight included.

        Args:
            model: the model.
            path: of a layer.
            op: as it was read.
        """


@runtime_checkable
class Structured(Protocol):
    """Optional: models without values can be loaded into."""

    def structure(self, model: Any, path: str) -> Op:
        """Read a layer that may have only a shape: its values do not matter."""


@runtime_checkable
class Recalling(Protocol):
    """Optional: the adapter learns from `trace` which layers may be replaced."""

    def recall(self) -> None:
        """Behave as after `trace`: the layers to replace were chosen on example inputs."""


@runtime_checkable
class NamesOutputs(Protocol):
    """Optional: names tell which layers give outputs, where there is no trace."""

    def named_outputs(self, model: Any) -> Iterable[str]:
        """Return the paths of the layers that give the model's outputs, as far as names tell."""


@runtime_checkable
class Calibrates(Protocol):
    """Optional: models can be compressed with calibration data.

    Nothing here changes the model: modes, buffers and random states are as before afterwards.
    """

    def moments(
        self,
        model: Any,
        calibration: Calibration,
        layers: Mapping[str, Op],
        rng: np.random.Generator,
        advance: Advance,
    ) -> Mapping[str, LayerMoments]:
        """Gather the moments of layers in one pass over the batches, in eval mode.

        Args:
            model: the model.
            calibration: batches and loss. The gradients are those of the loss summed over the
                examples of a batch; for "cross_entropy" with labels drawn from the prediction, for
                "outputs" those of Σ outputs · ε with standard normal ε.
            layers: the layers by path, as `read` gives them. `input_form` and `full_gradients` of
                `rankfold.calibration.moments` say what to gather of each. Layers that are not run
                are left out.
            rng: draws labels, noise and the sample of positions.
            advance: to be called before each batch with a word on it.

        Raises:
            RankfoldError: the model fails on a batch, an activation or a gradient is not finite
                (naming the layer), or the loss is not a scalar that can be differentiated.
        """

    def run_paired(
        self,
        model: Any,
        calibration: Calibration,
        layers: Mapping[str, Op],
        visit: LayerVisitor,
        *,
        sequential: bool,
        rng: np.random.Generator,
    ) -> Mapping[str, float]:
        """Run the model and its compressed self side by side, visiting layers as they are called.

        At the first call of each layer `visit(path, fit, validation)` gives the chain (or the op
        itself, with other weights, as a chain of one) that takes the layer's place in the
        compressed model from there on. A quarter of the examples is held out of `fit` and makes
        `validation`, both of the inputs projected on `visit.basis(path)`. Both are None for an
        `Embedding`, for a layer that `has_regression` is false of with that basis, and for one
        whose inputs in the two models do not correspond.

        A stack of layers of which one is called after the other, as in a loop, may be met part by
        part: `visit(path, fit, validation, groups)` for each, with the groups of the op that are
        called.

        Args:
            model: the model.
            calibration: the batches.
            layers: the layers to meet, by path, as `read` gives them.
            visit: called once per layer, or once for each of its groups, in the order of execution.
            sequential: whether the compressed model goes on with what its own layers give; else
                every layer meets the inputs that it has in the model, and its chain is only
                measured.
            rng: draws the sample of positions.

        Returns:
            ‖y − ŷ‖ / ‖y‖ of each layer met, over all positions of all examples: y is the output of
            the original layer in the model, ŷ that of the chain on its own inputs.

        Raises:
            RankfoldError: the model fails on a batch.
        """

    def refilled(self, model: Any, path: str, op: Op) -> Any:
        """Return the layer with the weights of an op in it: a module that `replace` takes."""

    def divergence(self, model: Any, small: Any, calibration: Calibration) -> tuple[float, float]:
        """Return the mean loss over the batches of the model and of the compressed one.

        For "cross_entropy" (0, mean KL divergence of the predictions) and for "outputs" (0, squared
        distance of the outputs over their squared norm).
        """


@runtime_checkable
class Times(Protocol):
    """Optional: times of layers and models, so that a latency can be limited."""

    def seconds(
        self, model: Any, path: str, chains: Sequence[Chain], extents: Sequence[Extent]
    ) -> tuple[float, ...]:
        """Median times of one pass of the layer and of chains in its place, measured in turns.

        The first is that of the layer itself. Inputs are random, of the layer's dtype, memory
        format and device, one call per extent.
        """

    def model_seconds(self, models: Sequence[Any], inputs: Any) -> tuple[float, ...]:
        """Median times of one forward pass of each model, measured in turns."""


@runtime_checkable
class Expands(Protocol):
    """Optional: a compression can be undone, to be compressed further."""

    def expanded(self, model: Any, small: Any, paths: Sequence[str]) -> Any:
        """Return the model with the values of its compressed form: what undoes `replace`.

        Args:
            model: the model.
            small: its compressed form, fine-tuned perhaps.
            paths: of the layers that chains stand for in it.

        Returns:
            A copy of `small` in which each of these is the layer itself again, with the dense
            weight that its chain stands for.

        Raises:
            Refused: what stands in the place of a layer is not a chain that `build` gave.
        """


@runtime_checkable
class NamesParts(Protocol):
    """Optional: what a call changes for a while; without it that is the model alone."""

    def parts(self, model: Any) -> Iterable[object]:
        """Return everything in the model that may be changed: modules and variables."""

    def thread_state(self) -> Callable[[], object]:
        """Return a function that puts the state of the current thread back as it is now."""
