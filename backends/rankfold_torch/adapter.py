"""`TorchAdapter`, through which the core reads, runs and changes models of PyTorch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rankfold.adapters.base import LayerVisitor, Trace
from rankfold.adapters.distils import Student
from rankfold.calibration.batches import Calibration
from rankfold.calibration.moments import LayerMoments
from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Extent, Op, params
from rankfold.ops.reference import composed
from rankfold.plugins.layer_rules import carried_out, read_by
from rankfold.progress import Advance
from rankfold_torch import distillation, timing, tracing
from rankfold_torch import state_io as weights
from rankfold_torch.calibration import losses, moments
from rankfold_torch.layers import set_values as refilling
from rankfold_torch.layers import stock as layers
from rankfold_torch.layers.parameter_layers import Factors, ParameterLayer, parameter_at
from rankfold_torch.layers.parameter_memory import settle
from rankfold_torch.layers.stock import to_array
from rankfold_torch.meta_tensors import shaped
from rankfold_torch.model_layers import (
    layers_of,
    modules_of,
    paths_by_module,
    rule_of,
    stages_of,
)
from rankfold_torch.offloading import check_owners, loaded, unhooked
from rankfold_torch.optimizers import following as optimizers_following
from rankfold_torch.paired_run import driver
from rankfold_torch.surgery import replace as swapping
from rankfold_torch.surgery.check_run import Run, outputs_in
from rankfold_torch.surgery.hooked_modules import aligned
from rankfold_torch.usage.refusals import (
    ModuleUsage,
    check_class,
    check_parameter,
    check_parts,
    check_root,
    check_state,
)


class TorchAdapter:
    """Reads, builds and replaces layers of a `torch.nn.Module`.

    An instance serves one call of plan, apply, compress or load, during which the model is
    unchanged until it is replaced.
    """

    image_axes = (2, 3)

    def __init__(self) -> None:
        # `ModuleUsage` walks over the whole model and reads source: once a model, not once a layer.
        # The caches are the instance's, as its models do not change while it lives.
        self._usages: Callable[[nn.Module], ModuleUsage] = cache(ModuleUsage)
        self._run: Run | None = None
        self._paths: Callable[[nn.Module], Mapping[int, list[str]]] = cache(paths_by_module)

    def parts(self, model: nn.Module) -> Iterable[object]:
        """Yield the modules, and the tensors that these may share with those of other models."""
        for module in model.modules():
            # These are compared by identity, to find models that share a part with one at work.
            yield module
            if not isinstance(module, torch.jit.ScriptModule):  # whose tensors are always new ones
                tensors = (*module._parameters.values(), *module._buffers.values())
                yield from (tensor for tensor in tensors if tensor is not None)

    def thread_state(self) -> Callable[[], object]:
        """Return a function that sets gradients on or off as they are now."""
        # `no_grad` sets the flag back in its own `__exit__`, which an interrupt may cut off. The
        # value is read here, before anything changes it.
        return partial(torch.set_grad_enabled, torch.is_grad_enabled())

    def layers(self, model: nn.Module) -> Mapping[str, str]:
        """Return the classes of layers by path."""
        check_root(model)
        return {
            path: f"{type(layer.module).__name__}.{layer.name}"
            if isinstance(layer, ParameterLayer)
            else type(layer).__name__
            for path, layer in layers_of(model).items()
        }

    def size(self, model: nn.Module) -> int:
        """Return the number of parameters, shared ones counted once."""
        return sum(p.numel() for p in model.parameters() if not nn.parameter.is_lazy(p))

    def aliases(self, model: nn.Module, path: str) -> tuple[str, ...]:
        """Return the further paths of a module that stands in several places."""
        parameter = parameter_at(model, path)
        module = model.get_submodule(path) if parameter is None else parameter.module
        end = "" if parameter is None else f".{parameter.name}"
        others = (f"{other}{end}".lstrip(".") for other in self._paths(model)[id(module)])
        return tuple(other for other in others if other != path)

    def read(self, model: nn.Module, path: str) -> Op:
        """Return the layer at a path as an op; refuse it for what it is or what surrounds it."""
        parameter = parameter_at(model, path)
        if parameter is not None:
            return self._read_parameter(model, path, parameter)
        check_owners(model, path)
        return self._read_module(model, path, loaded(model.get_submodule(path)))

    def structure(self, model: nn.Module, path: str) -> Op:
        """Return the layer at a path as an op; one on the meta device has zeros for values."""
        parameter = parameter_at(model, path)
        if parameter is not None:
            shell = ParameterLayer(shaped(parameter.module), parameter.name)
            return self._read_parameter(model, path, shell)
        return self._read_module(model, path, shaped(unhooked(model.get_submodule(path))))

    def _read_parameter(self, model: nn.Module, path: str, layer: ParameterLayer) -> Op:
        check_parameter(layer.module, layer.name)
        owner = path.rpartition(".")[0]
        # Ties are looked for by identity of modules: the one in the model is asked, not a shell of
        # it.
        surrounded = model.get_submodule(owner)
        self._usages(model).check_parameter(owner, surrounded, layer.name)
        return layer.read()

    def _read_module(self, model: nn.Module, path: str, module: nn.Module) -> Op:
        """Read a layer, by the module or by a shell of it with the values that are to be read."""
        rule = rule_of(module)
        if rule is None:
            check_class(module)
        check_state(module)
        if rule is None:
            check_parts(module)
        # In this order the reason given is the one nearest to the layer: its class, how it holds
        # its weight, what else it holds, and only then its surroundings. A rule answers for the
        # class and the parts of its layers; what rules cannot know is checked for them, too.
        self._usages(model).check(path, model.get_submodule(path))
        return layers.read(module) if rule is None else read_by(rule, module)

    def folded(self, model: nn.Module, path: str) -> str:
        """Return the name of what the layer's rule folds into the weight; "" without a rule."""
        rule = None if parameter_at(model, path) else rule_of(model.get_submodule(path))
        return "" if rule is None else rule.folds

    def why_not_interpolated(self, model: nn.Module, path: str) -> str:
        """Return why a layer takes no interpolative stages."""
        if parameter_at(model, path) is not None:
            return "a parameter is a product of matrices, none of which can be interpolative"
        rule = rule_of(model.get_submodule(path))
        if rule is not None and rule.build is not None:
            return "its layer rule builds the stages, which cannot be interpolative"
        return ""

    def parameters(self, model: nn.Module, path: str, op: Op) -> int:
        """Return the number of parameters of a layer, those folded into its weight included."""
        return params(op) if parameter_at(model, path) else self.size(model.get_submodule(path))

    def trace(self, model: nn.Module, inputs: Any) -> Trace:
        """Trace one forward pass in eval mode without gradients."""
        check_root(model)
        modules = modules_of(model)
        outputs: list[torch.Tensor] = []
        trace = tracing.trace(
            model, modules, inputs, lambda output: outputs.extend(outputs_in(output))
        )
        # A parameter that is a layer has no calls that could be seen.
        unseen = frozenset(layers_of(model)) - frozenset(modules)
        trace = replace(trace, uncounted=trace.uncounted | unseen)
        counts = Counter({path: len(seen) for path, seen in trace.extents.items()})
        self._run = Run(inputs, counts, outputs)
        self.recall()
        return trace

    def recall(self) -> None:
        """Rely on a run for what `forward` reads, and on the source for the rest alone."""
        # A new cache: without a trace, more reads in the source count against a layer.
        self._usages = cache(partial(ModuleUsage, traced=True))

    def build(self, model: nn.Module, path: str, chain: Chain) -> nn.Module | Factors:
        """Build an `nn.Sequential` of stock layers, or the factors of a parameter."""
        parameter = parameter_at(model, path)
        if parameter is not None:
            return parameter.build(chain)
        module = loaded(model.get_submodule(path))
        rule = rule_of(module)
        if rule is None or rule.build is None:
            return layers.build(chain, module).at(path)
        with torch.inference_mode(mode=False):
            built: nn.Module = carried_out(rule.build, chain, module)
            settle(built)
        return built

    def run(self, module: nn.Module | Factors, x: Array) -> Array:
        """Return the output of a module, computed in float64."""
        if isinstance(module, Factors):
            return to_array(module.run(torch.from_numpy(np.ascontiguousarray(x))).cpu())
        return layers.run(module, x)

    def precision(self, model: nn.Module, path: str) -> float:
        """Return the machine epsilon of the layer's dtype."""
        parameter = parameter_at(model, path)
        if parameter is not None:
            return torch.finfo(parameter.tensor.dtype).eps
        dtype = next(model.get_submodule(path).parameters(recurse=False)).dtype
        return torch.finfo(dtype).eps

    def replace(
        self, model: nn.Module, modules: Mapping[str, swapping.New], *, inplace: bool
    ) -> nn.Module:
        """Swap layers by identity, so that shared modules stay shared, and parameters by name.

        The copy never copies the layers that are replaced.

        Raises:
            RankfoldError: something holds a layer where no other can take its place.
        """
        return swapping.whole(swapping.replaced(model, modules, inplace=inplace))

    def replaced(
        self, model: nn.Module, modules: Mapping[str, swapping.New], *, inplace: bool
    ) -> tuple[nn.Module, Mapping[str, str]]:
        """Replace layers and say which must be left; run the result once on traced inputs."""
        return swapping.replaced(model, modules, inplace=inplace, run=self._run)

    def save_weights(self, model: nn.Module, file: Path) -> None:
        """Write every parameter and persistent buffer, tied ones once."""
        weights.save_weights(model, file)

    def load_weights(self, model: nn.Module, file: Path, *more: Path) -> nn.Module:
        """Fill the model after checking names, shapes and dtypes."""
        return self.load_renamed(model, {}, file, *more)

    def load_renamed(
        self, model: nn.Module, names: Mapping[str, str], file: Path, *more: Path
    ) -> nn.Module:
        """Fill the model from files that have other names for its tensors."""
        # Under inference mode the values would be set on tensors that can never be trained.
        with torch.inference_mode(mode=False):
            weights.load_weights(model, file, *more, names=names)
        return model

    def input_of(self, model: nn.Module, array: Array) -> torch.Tensor:
        """Return an array as a tensor, on the device and in the type of the parameters."""
        tensor = torch.from_numpy(np.array(array))  # a copy, as the array may be read-only
        like = next((p for p in model.parameters() if p.is_floating_point()), None)
        if like is None:
            return tensor
        return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)

    def moments(
        self,
        model: nn.Module,
        calibration: Calibration,
        layers: Mapping[str, Op],
        rng: np.random.Generator,
        advance: Advance,
    ) -> Mapping[str, LayerMoments]:
        """Gather moments in one forward and backward pass per batch, by hooks on the modules."""
        # A parameter has no call of its own at which a hook could see inputs.
        in_modules = {path: op for path, op in layers.items() if parameter_at(model, path) is None}
        return moments.moments(model, calibration, in_modules, rng, advance)

    def run_paired(
        self,
        model: nn.Module,
        calibration: Calibration,
        layers: Mapping[str, Op],
        visit: LayerVisitor,
        *,
        sequential: bool,
        rng: np.random.Generator,
    ) -> Mapping[str, float]:
        """Run the model twice side by side, each run in a thread of its own."""

        def build(path: str, chain: Chain) -> Any:
            first, op = chain[0], layers[path]
            # A chain of one op of the layer's own shape is a refit at full rank: the layer stays
            # what it is, with other values.
            same = type(first) is type(op) and first.weight.shape == op.weight.shape
            refills = len(chain) == 1 and same
            new = self.refilled(model, path, first) if refills else self.build(model, path, chain)
            assert isinstance(new, nn.Module)  # a parameter has no calls that a run could meet
            return aligned(new, model.get_submodule(path))

        return driver.run_paired(
            model, calibration, layers, visit, build, sequential=sequential, rng=rng
        )

    def refilled(self, model: nn.Module, path: str, op: Op) -> nn.Module | nn.Parameter:
        """Return a copy of the layer with the values of an op."""
        parameter = parameter_at(model, path)
        if parameter is not None:
            return parameter.filled(op.weight)
        module = loaded(model.get_submodule(path))
        rule = rule_of(module)
        if rule is not None and rule.folds:
            raise Refused(f"its {rule.folds} would change new values")
        read = None if rule is None else partial(read_by, rule)
        with torch.inference_mode(mode=False):
            return refilling.refilled(module, op, read)

    def expanded(self, model: nn.Module, small: nn.Module, paths: Sequence[str]) -> nn.Module:
        """Return a copy of the compressed model with a copy of the layer in place of each chain."""
        modules = self._dense(model, small, paths)
        return swapping.whole(swapping.replaced(small, modules, inplace=False))

    def expand(self, model: nn.Module, small: nn.Module, paths: Sequence[str]) -> None:
        """Put a copy of the layer in the place of each chain of the compressed model."""
        swapping.whole(swapping.replaced(small, self._dense(model, small, paths), inplace=True))

    def _dense(
        self, model: nn.Module, small: nn.Module, paths: Sequence[str]
    ) -> dict[str, nn.Module | nn.Parameter]:
        modules = {}
        for path in paths:
            op = self.read(model, path)
            parameter = parameter_at(model, path)
            if parameter is None:
                # The factors as they are now, after any fine-tuning.
                try:
                    chain = layers.chain(loaded(small.get_submodule(path)))
                except Refused as refused:
                    raise Refused(f"layer {path!r}: {refused.reason}") from None
            else:
                chain = parameter.chain(small.get_submodule(path.rpartition(".")[0]))
            if folds := self.folded(model, path):
                raise Refused(
                    f"the {folds} of layer {path!r} was folded into its chain and cannot be taken "
                    "out again"
                )
            modules[path] = self.refilled(model, path, composed(op, chain))
        return modules

    def stages(self, model: nn.Module) -> Mapping[str, Sequence[str]]:
        """Return the stock layers in each chain, by path."""
        return stages_of(model)

    def following(
        self, model: nn.Module, optimizers: Sequence[Any]
    ) -> AbstractContextManager[None]:
        """Return a context after which optimizers have the model's parameters as they are then."""
        return optimizers_following(model, optimizers)

    def divergence(
        self, model: nn.Module, small: nn.Module, calibration: Calibration
    ) -> tuple[float, float]:
        """Return the mean losses of both models, by one forward pass of each per batch."""
        return losses.divergence(model, small, calibration)

    def student(
        self, model: nn.Module, small: nn.Module, held_out: Calibration
    ) -> AbstractContextManager[Student]:
        """Train a copy of the compressed model, with gradients by autograd."""
        return distillation.student(model, small, held_out)

    def seconds(
        self, model: nn.Module, path: str, chains: Sequence[Chain], extents: Sequence[Extent]
    ) -> tuple[float, ...]:
        """Return median seconds of a layer and its chains; infinite for chains of a parameter.

        Chains that cannot be built take forever, too. Factors of a parameter are multiplied out for
        every use; the parameter itself has no time of its own.
        """
        if parameter_at(model, path) is not None:
            # Infinite times keep a latency budget from choosing factors.
            return (0.0, *(math.inf for _ in chains))
        built: list[nn.Module | None] = []
        for chain in chains:
            try:
                module = self.build(model, path, chain)
                assert isinstance(module, nn.Module)
                built.append(module)
            except Refused:
                built.append(None)
        layer = loaded(model.get_submodule(path))
        return timing.seconds(layer, self.read(model, path), built, extents)

    def model_seconds(self, models: Sequence[nn.Module], inputs: Any) -> tuple[float, ...]:
        """Return median seconds of whole forward passes in eval mode without gradients."""
        return timing.model_seconds(models, inputs)
