"""Find the layers that give the outputs of a model: by a trace, else by their names or order.

The rank of such a layer bounds what the model can tell apart, and its few rows say little of that
rank, so policies that judge one layer at a time leave it alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

from rankfold.adapters.base import Trace
from rankfold.adapters.capabilities import Capabilities

TRACED = (
    "its output is an output of the model; name it with include= or overrides= to have it "
    "compressed"
)
NAMED = (
    "by its name it gives an output of the model; name it with include= or overrides= to have it "
    "compressed"
)
LAST = (
    "the last layer, which without inputs is taken to give the output of the model; name it with "
    "include= or overrides= to have it compressed"
)
_NAMES = frozenset(
    [
        "head",
        "heads",
        "classifier",
        "classifiers",
        "lm_head",
        "embed_out",
        "logits",
        "to_logits",
        "score",
        "cls",
        "qa_outputs",
        "seq_relationship",
        "cls_score",
        "bbox_pred",
    ]
)
"""Components of a path that tell wherever they stand outside a numbered stack of blocks."""
_ENDINGS = ("_head", "_heads", "_classifier", "_logits")
_SEVERAL = ("heads", "classifiers")
_TOP_NAMES = frozenset(["fc", "output", "out", "out_proj", "proj_out"])
"""Names that tell at the top level only: further down most blocks have one of these."""
_MODEL = "model"
"""The usual name of a whole model within another module: what follows is at the top all the same.
"""
_LAST_INSIDE = frozenset(
    [
        "decoder",
        "out_proj",
        "fc2",
        "output",
        "out",
        "logits",
        "conv_seg",
        "conv_cls",
        "conv_reg",
        "proj",
    ]
)
"""What the last layer is called within a module that is named as a head."""
_NUMBERED = re.compile(r"(?:(\w+)\.)?\d+")
_FLAT = re.compile(r"(fc|linear|lin|dense)_?\d+", re.IGNORECASE)


def output_layers(
    can: Capabilities,
    model: Any,
    trace: Trace | None,
    paths: Sequence[str],
    wrappers: Collection[str] = (),
) -> Mapping[str, str]:
    """Return the layers that give the outputs of a model, each with the reason that says so.

    Args:
        can: what the adapter of the model offers.
        model: the model.
        trace: of the model; None without example inputs.
        paths: of all its layers, in its order.
        wrappers: parts that wrappers of a model add to paths.
    """
    if trace is not None and trace.outputs is not None:
        return dict.fromkeys(trace.outputs, TRACED)
    if can.names_outputs is not None:
        return dict.fromkeys(can.names_outputs.named_outputs(model), NAMED)
    return guessed(paths, wrappers)


def by_names(paths: Sequence[str], wrappers: Collection[str] = ()) -> frozenset[str]:
    """Return the layers that give the outputs of a model, as far as their names tell.

    Of a head of several layers ("classifier.0", "classifier.3") it is the last one, and so it is of
    a model that is a numbered sequence ("0", "2", "4") or ends in one ("conv1", "fc1", "fc2").

    Args:
        paths: of all layers of a model.
        wrappers: parts that wrappers of a model add to paths.
    """
    # Where any name tells, order does not count: the last layer by number may be one inside a
    # block.
    outside = frozenset((*wrappers, _MODEL))
    heads: dict[str, list[str]] = {}
    for path in paths:
        head = _head_around(path, outside)
        if head is not None:
            heads.setdefault(head, []).append(path)
    if heads:
        return frozenset(_last_inside(head, inside) for head, inside in heads.items())
    numbered = [_NUMBERED.fullmatch(path) for path in paths]
    # All layers are in one sequence, "0", "2", "4" or "layers.0", "layers.2": nothing but their
    # number sets them apart, and the last one has the output.
    if len({match and match[1] for match in numbered}) == 1 and all(numbered):
        return frozenset((reduce(_later, paths),))
    flat = [path for path in paths if _FLAT.fullmatch(path)]
    latest = max(flat, key=lambda path: int(re.sub(r"\D", "", path)), default=None)
    return frozenset() if latest is None else frozenset((latest,))


def guessed(paths: Sequence[str], wrappers: Collection[str] = ()) -> Mapping[str, str]:
    """Return the layers that probably give the outputs of a model, each with its reason.

    Args:
        paths: of all layers of a model, in its order.
        wrappers: parts that wrappers of a model add to paths.
    """
    named = by_names(paths, wrappers)
    if named or not paths:
        return dict.fromkeys(named, NAMED)
    return {paths[-1]: LAST}


def _head_around(path: str, outside: Collection[str]) -> str | None:
    """Return the innermost part of a path, from its start, that is named as an output layer.

    Args:
        path: of a layer.
        outside: parts in front of what is at the top of a model.
    """
    parts = path.split(".")
    # From the innermost part outwards: "lm_head" of "decoder.lm_head.dense", and not what is around
    # it.
    for end in range(len(parts), 0, -1):
        before, name = parts[: end - 1], parts[end - 1].lower()
        if any(part.isdecimal() for part in before):
            continue  # a block of a stack, which has such names for parts of its own
        if name in _NAMES or name.endswith(_ENDINGS):
            each = name.endswith(_SEVERAL)  # several heads, one for each thing in it
            return ".".join(parts[: end + each])
        # Such a name counts for the layer itself only: "output" may be a module with a stack in it.
        if end == len(parts) and name in _TOP_NAMES and set(before).issubset(outside):
            return path
    return None


def _last_inside(head: str, paths: Iterable[str]) -> str:
    """Return the last of the layers of a head."""
    inside = list(paths)
    # A head that is a layer itself has its own output. Else the usual name of a last layer decides,
    # and after that the order, which in files is that of names.
    named = [path for path in inside if path.rpartition(".")[2] in _LAST_INSIDE]
    return head if head in inside else reduce(_later, named or inside)


def _later(path: str, other: str) -> str:
    """Return the later of two layers: by number where they differ in one, else the second.

    Files list tensors by name, "10" before "9".
    """
    # Only the first part that differs counts; further parts are within other modules.
    for a, b in zip(path.split("."), other.split("."), strict=False):
        if a != b:
            return path if a.isdecimal() and b.isdecimal() and int(a) > int(b) else other
    return other
