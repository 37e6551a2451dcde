"""A flat graph run piece by piece: from the input of one layer to that of the next.

All values between two layers are known to the caller, who decides what each layer gives. So two
runs of a model advance side by side, each node of both being run once, and no value is kept beyond
its last reader.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnxruntime

from rankfold_onnx import runtime
from rankfold_onnx.flat_graph import FlatCall, FlatGraph, names_read


@dataclass(eq=False)
class Segment:
    """Nodes that are run in one go.

    Attributes:
        flat: whose nodes they are.
        nodes: their indices.
        inputs: names that they read of values before them.
        outputs: names that are read after them.
        last_read: names that nothing reads any more once they have run.
    """

    flat: FlatGraph
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_read: tuple[str, ...] = ()
    _session: onnxruntime.InferenceSession | None = field(default=None, repr=False)

    def run(self, values: dict[str, Any]) -> None:
        """Add what the nodes give to the values before them.

        Raises:
            RankfoldError: they fail.
        """
        if self.nodes and self.outputs:
            feeds = {name: values[name] for name in self.inputs}
            if self._session is None:
                # Only now the types of what goes in are known.
                described = [runtime.typed(name, value) for name, value in feeds.items()]
                nodes = [self.flat.nodes[index] for index in self.nodes]
                part = self.flat.part(nodes, described, self.outputs)
                self._session = runtime.session(part, optimized=False)
            results = runtime.run(self._session, self.outputs, feeds)
            values.update(zip(self.outputs, results, strict=True))

    def release(self, values: dict[str, Any]) -> None:
        """Forget what nothing reads any more."""
        for name in self.last_read:
            values.pop(name, None)


@dataclass(frozen=True, eq=False)
class Step:
    """The call of a layer and the nodes up to it.

    Attributes:
        call: of the layer.
        before: the nodes between the last layer and this one.
        layer: the nodes of the layer itself.
    """

    call: FlatCall
    before: Segment
    layer: Segment


@dataclass(frozen=True, eq=False)
class Segments:
    """Steps from layer to layer, and the nodes behind the last one.

    Args:
        flat: the graph.
        paths: of the layers to stop at; all others are nodes like any.

    Attributes:
        steps: one for each call of one of these layers.
        end: gives the outputs of the model.
    """

    steps: tuple[Step, ...]
    end: Segment

    @classmethod
    def of(cls, flat: FlatGraph, paths: Collection[str]) -> Segments:
        """Cut a graph at the inputs of layers."""
        calls = [c for c in flat.calls if c.path in paths and c.x not in flat.constants]
        of_layers = {index for call in calls for index in call.nodes}
        done: set[str] = {item.name for item in flat.model.graph.input} | set(flat.constants)
        parts: list[tuple[int, ...]] = []
        run: set[int] = set(of_layers)

        def add(nodes: tuple[int, ...]) -> None:
            parts.append(nodes)
            run.update(nodes)
            done.update(name for index in nodes for name in flat.nodes[index].output)

        for call in calls:
            # The weight of a layer may be a constant behind a Transpose or an Identity.
            wanted = [call.x, *(n for index in call.nodes for n in names_read(flat.nodes[index]))]
            add(tuple(index for index in flat.needed(wanted, done) if index not in run))
            add(call.nodes)
        add(tuple(index for index in flat.needed(flat.outputs, done) if index not in run))
        segments = _linked(flat, parts, {call.y for call in calls})
        steps = tuple(
            Step(call, segments[2 * number], segments[2 * number + 1])
            for number, call in enumerate(calls)
        )
        return cls(steps, segments[-1])


def _linked(
    flat: FlatGraph, parts: Sequence[tuple[int, ...]], wanted: Collection[str]
) -> list[Segment]:
    """Return segments, each with what it reads of those before it and gives to those after it.

    Args:
        flat: the graph.
        parts: the nodes of each segment.
        wanted: names that are given although nothing may read them.
    """
    reads = [
        dict.fromkeys(name for index in part for name in names_read(flat.nodes[index]))
        for part in parts
    ]
    gives = [
        dict.fromkeys(n for index in part for n in flat.nodes[index].output if n) for part in parts
    ]
    later: set[str] = set(flat.outputs)
    segments: list[Segment] = []
    for read, give, part in zip(reversed(reads), reversed(gives), reversed(parts), strict=True):
        outputs = tuple(name for name in give if name in later or name in wanted)
        inputs = tuple(name for name in read if name not in give and name not in flat.constants)
        last = tuple(name for name in inputs if name not in later)
        later |= set(inputs)
        segments.append(Segment(flat, part, inputs, outputs, last))
    return segments[::-1]
