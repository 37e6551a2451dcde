"""Layouts of fully connected layers, their general forms, einsums and tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rankfold import linalg
from rankfold.errors import Refused
from rankfold.linalg import Array
from rankfold.ops import Chain, Embedding, Linear
from rankfold_jax.jaxpr.parameter_uses import ParameterUse
from rankfold_jax.layouts.base import Call, Roles, Stage, contiguous, foreign, linears, matrices
from rankfold_jax.layouts.interpolative import interpolative_stage

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class DenseForm:
    """Layout of a kernel (*batch, *inputs, *outputs), contracted with axes of the input.

    Attributes:
        inputs: sizes of the contracted axes.
        outputs: sizes of the axes that come last in the output.
        axis: the contracted axes of the input, as given by the user.
        batch: sizes of the leading axes of the input that have a kernel each.
        general: whether it is a LinearGeneral or DenseGeneral.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axis: tuple[int, ...] = (-1,)
    batch: tuple[int, ...] = ()
    general: bool = False

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel, (*batch, *inputs, *outputs)."""
        return (*self.batch, *self.inputs, *self.outputs)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias, (*batch, *outputs)."""
        return (*self.batch, *self.outputs)

    @property
    def roles(self) -> Roles:
        """Roles of the axes of the kernel: groups, then inputs, then outputs."""
        return (
            *(f"group{i}" for i in range(len(self.batch))),
            *(f"in{i}" for i in range(len(self.inputs))),
            *(f"out{i}" for i in range(len(self.outputs))),
        )

    @property
    def bias_roles(self) -> Roles:
        """Roles of the axes of the bias: groups, then outputs."""
        return tuple(role for role in self.roles if not role.startswith("in"))

    def op(self, kernel: Array, bias: Array | None) -> Linear:
        """Return a Linear with a group for every slice of the stack and every batch index."""
        blocks = len(kernel) * math.prod(self.batch)
        weight = kernel.reshape(blocks, math.prod(self.inputs), math.prod(self.outputs))
        weight = linalg.contiguous(weight.swapaxes(1, 2))
        flat = None if bias is None else linalg.contiguous(bias).reshape(-1)
        return Linear(weight.reshape(-1, weight.shape[2]), flat, groups=blocks)

    def stages(self, chain: Chain, stack: int) -> tuple[Stage, ...]:
        """Build layers of the same class, one behind the other."""
        stages = []
        ops = linears(chain)
        for index, op in enumerate(ops):
            last = index == len(ops) - 1
            if op.pivots is not None:
                stages.append(interpolative_stage(op, self.outputs if last else None))
                continue
            weight = matrices(op, stack * math.prod(self.batch))
            form = replace(
                self,
                inputs=self.inputs if index == 0 else weight.shape[1:2],
                outputs=self.outputs if last else weight.shape[2:],
                # The first stage contracts the axes of the layer; the ranks lie on the last axis.
                axis=self.axis if index == 0 else (-1,),
            )
            kernel = contiguous(weight).reshape(stack, *form.kernel_shape)
            bias = None if op.bias is None else contiguous(op.bias).reshape(stack, *form.bias_shape)
            stages.append(Stage(form, kernel, bias))
        return tuple(stages)

    def extent(self, use: ParameterUse) -> tuple[int, ...] | None:
        """Return the sizes of the input that are neither contracted nor in the batch."""
        if use.primitive != "dot_general":
            raise foreign(use)
        return use.extent

    def run(self, call: Call, x: Array, stack: int) -> Array:
        """Run one row of x at a time, with axes of size 1 where the layer wants more."""
        # The smallest number of axes of an input that all given axes exist in, without the stack.
        ndim = max(
            len(self.batch) + len(self.inputs) + 1,
            1 + max((a + 1 for a in self.axis if a >= 0), default=0),
            *(len(self.batch) - a for a in self.axis if a < 0),
        )
        axis = sorted(a % ndim for a in self.axis)  # as Flax pairs them with the inputs
        # Axes that are neither in the batch nor contracted: of size 1 for a single row.
        free = ndim - len(self.batch) - len(axis)
        rows = []
        for row in x:
            value = row.reshape(stack, *self.batch, *(1,) * free, *self.inputs)
            start = 1 + len(self.batch) + free
            value = np.moveaxis(value, range(start, start + len(axis)), [1 + a for a in axis])
            rows.append(call(np.ascontiguousarray(value)).reshape(-1))
        return np.stack(rows)


@dataclass(frozen=True)
class EinsumForm:
    """Layout of an einsum of the input with a kernel.

    Attributes:
        text: "input,kernel->output", without spaces.
        shape: of the kernel.
        bias: the shape of the bias as the layer holds it; () without one.
    """

    text: str
    shape: tuple[int, ...]
    bias: tuple[int, ...] = ()

    @cached_property
    def _terms(self) -> tuple[str, str, str]:
        operands, _, output = self.text.partition("->")
        inputs, _, kernel = operands.partition(",")
        return inputs, kernel, output

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return dict(zip(self._terms[1], self.shape, strict=True))

    def _letters(self, role: str) -> str:
        inputs, kernel, output = self._terms
        wanted = {"group": (True, True), "in": (True, False), "out": (False, True)}[role]
        # A letter in all three is a group, one that output lacks is summed, one that input lacks is
        # made.
        return "".join(c for c in kernel if (c in inputs, c in output) == wanted)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel, in the order of its letters."""
        return self.shape

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias as the layer holds it; () without one."""
        return self.bias

    @property
    def roles(self) -> Roles:
        """Roles of the axes of the kernel, one for each of its letters."""
        named = {}
        for role in ("group", "in", "out"):
            named.update({c: f"{role}{i}" for i, c in enumerate(self._letters(role))})
        return tuple(named[c] for c in self._terms[1])

    @property
    def bias_roles(self) -> Roles:
        """Roles in the order of the output if the bias has an axis for each letter; else none."""
        letters = self._bias_letters
        # A bias is broadcast to the output, and may have axes of 1 or another order than the
        # letters.
        if self.bias != tuple(self._sizes[c] for c in letters):
            return ("",) * len(self.bias)
        named = dict(zip(self._terms[1], self.roles, strict=True))
        return tuple(named[c] for c in letters)

    @property
    def _bias_letters(self) -> str:
        return "".join(c for c in self._terms[2] if c in self._sizes)

    def op(self, kernel: Array, bias: Array | None) -> Linear:
        """Return a Linear with a group for every index that input, kernel and output share."""
        self._check()
        group, into, out = (self._letters(role) for role in ("group", "in", "out"))
        blocks = len(kernel) * self._size(group)
        # The letters of a kernel may stand in any order; an op has groups, outputs, inputs.
        weight = self._ordered(kernel, self._terms[1], group + out + into)
        flat = None
        if bias is not None:
            if math.prod(self.bias) != self._size(group + out):
                raise Refused(f"its bias of shape {self.bias} is not one number for each output")
            letters = self._bias_letters
            spread = bias.reshape(-1, *(self._sizes[c] for c in letters))
            flat = linalg.contiguous(self._ordered(spread, letters, group + out)).reshape(-1)
        weight = linalg.contiguous(weight).reshape(blocks * self._size(out), self._size(into))
        return Linear(weight, flat, groups=blocks)

    def stages(self, chain: Chain, stack: int) -> tuple[Stage, ...]:
        """Build einsums that hand a new index, the rank, from one to the next."""
        inputs, _, output = self._terms
        group, into, out = (self._letters(role) for role in ("group", "in", "out"))
        # Two new letters: consecutive stages in the middle of a chain have different ranks.
        rank = next(c for c in _LETTERS if c not in self.text)
        # What lies between two stages has the free axes and groups, with the rank in place of
        # outputs.
        between = "".join(c for c in output if c not in out) + rank
        other = next(c for c in _LETTERS if c not in self.text + rank)
        stages = []
        ops = linears(chain)
        for index, op in enumerate(ops):
            weight = matrices(op, stack * self._size(group))
            first, last = index == 0, index == len(ops) - 1
            taken = into if first else rank
            output_index = out if last else (rank if first else other)
            term = group + taken + output_index
            sizes = [*(self._sizes[c] for c in group)]
            sizes += [self._sizes[c] for c in into] if first else [weight.shape[1]]
            sizes += [self._sizes[c] for c in out] if last else [weight.shape[2]]
            left = inputs if first else between
            right = output if last else between.replace(rank, output_index)
            form = EinsumForm(f"{left},{term}->{right}", tuple(sizes), self.bias if last else ())
            bias = None
            if op.bias is not None:
                spread = op.bias.reshape(stack, *(self._sizes[c] for c in group + out))
                ordered = self._ordered(spread, group + out, self._bias_letters)
                bias = contiguous(ordered).reshape(stack, *self.bias)
            stages.append(Stage(form, contiguous(weight).reshape(stack, *sizes), bias))
        return tuple(stages)

    def extent(self, use: ParameterUse) -> tuple[int, ...] | None:
        """Return the sizes of the input for which the kernel has no letter."""
        if use.primitive != "dot_general":
            raise foreign(use)
        return use.extent

    def run(self, call: Call, x: Array, stack: int) -> Array:
        """Run one row of x at a time, with axes of size 1 for every other index."""
        inputs, _, output = self._terms
        group, into, out = (self._letters(role) for role in ("group", "in", "out"))
        letters = list(inputs.replace("...", ""))
        rows = []
        for row in x:
            value = row.reshape(stack, *(self._sizes[c] for c in group + into))
            present = [c for c in letters if c in group + into]
            # Free letters of the input, and those of an ellipsis, are positions; one row has one of
            # them.
            value = self._ordered(value, group + into, "".join(present))
            shape = [self._sizes[c] if c in present else 1 for c in letters]
            y = call(np.ascontiguousarray(value).reshape(stack, *shape))
            kept = [c for c in output.replace("...", "") if c in group + out]
            y = y.reshape(stack, *(self._sizes[c] for c in kept))
            rows.append(self._ordered(y, "".join(kept), group + out).reshape(-1))
        return np.stack(rows)

    def _check(self) -> None:
        inputs, kernel, output = self._terms
        for term in (inputs, kernel, output):
            if len(set(term.replace(".", ""))) != len(term.replace(".", "")):
                raise Refused(f"its einsum {self.text!r} repeats an index in one term")
        if "." in kernel:
            raise Refused(f"its einsum {self.text!r} has an ellipsis in the kernel")
        alone = [c for c in kernel if c not in inputs and c not in output]
        if alone:
            raise Refused(f"its einsum {self.text!r} sums the kernel over {alone[0]!r} alone")
        if not self._letters("in") or not self._letters("out"):
            raise Refused(f"its einsum {self.text!r} is no product of matrices")

    def _size(self, letters: str) -> int:
        return math.prod(self._sizes[c] for c in letters)

    @staticmethod
    def _ordered(stacked: Array, before: str, after: str) -> Array:
        return stacked.transpose(0, *(1 + before.index(c) for c in after))


@dataclass(frozen=True)
class EmbedForm:
    """Layout of a table (rows, features)."""

    rows: int
    features: int

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the table, (rows, features)."""
        return (self.rows, self.features)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Empty shape: a table has no bias."""
        return ()

    @property
    def roles(self) -> Roles:
        """Roles of the axes of the table, whose rows are the inputs."""
        return ("in0", "out0")

    @property
    def bias_roles(self) -> Roles:
        """Empty roles: a table has no bias."""
        return ()

    def op(self, kernel: Array, bias: Array | None) -> Embedding:
        """Return the table as an op."""
        if len(kernel) > 1:
            raise Refused(f"a stack of {len(kernel)} tables is not decomposed")
        return Embedding(kernel[0])

    def stages(self, chain: Chain, stack: int) -> tuple[Stage, ...]:
        """Build a smaller table and linear layers behind it."""
        table, *rest = chain
        if not isinstance(table, Embedding):
            raise Refused("the chain of a table does not begin with a table")
        form = EmbedForm(*table.weight.shape)
        behind = DenseForm((form.features,), (self.features,))
        first = Stage(form, contiguous(table.weight)[None], None)
        return (first, *behind.stages(tuple(rest), stack)) if rest else (first,)

    def extent(self, use: ParameterUse) -> tuple[int, ...] | None:
        """Return the shape of the indices; None for `attend`, a product with the table."""
        # `attend` multiplies by the table transposed, as a tied head does. The chain can do that as
        # well, so it is no reason against the layer.
        if use.primitive not in ("gather", "dot_general"):
            raise foreign(use)
        return use.extent if use.primitive == "gather" else None

    def run(self, call: Call, x: Array, stack: int) -> Array:
        """Run all rows at once."""
        y: Array = call(x[None])[0]
        return y
