"""Compressed models of many architectures of transformers, saved, opened and saved again.

    python -m tests.benchmarks.transformers_sweep [MODEL_TYPE ...]

Each is a tiny model with weights at random. One row an architecture and a way: "model" is
`Compressed.save`, "files" is `compress_checkpoint` of what `save_pretrained` writes of the model,
by the names that transformers gives tensors in files. It is opened by `from_pretrained`, saved by
`save_pretrained` and opened again, and opened by `rankfold.load`. A row is "ok" if all tensors are
the same bit for bit each time, and are those of the original where a layer was left alone, and a
product with the error that the plan states where it was not.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.tiny_transformers import ARCHITECTURES, tiny

import rankfold as rf
from rankfold_transformers.records import recorded

POLICY = rf.Ratio(0.4)
_ROUNDING = 1e-3


def by_model(model: Any, folder: Path) -> tuple[rf.Plan, Any]:
    """Compress a model and save it; return the plan and the state that is saved."""
    small = rf.compress(model, POLICY, include="*")
    small.save(folder / "small")
    return small.plan, small.model.state_dict()


def by_files(model: Any, folder: Path) -> tuple[rf.Plan, Any]:
    """Compress the files of a model; return the plan, and no state."""
    model.save_pretrained(folder / "whole", max_shard_size="100KB")
    return rf.compress_checkpoint(folder / "whole", folder / "small", POLICY), None


WAYS: dict[str, Callable[[Any, Path], tuple[rf.Plan, Any]]] = {
    "model": by_model,
    "files": by_files,
}


def row(kind: str, way: str, folder: Path) -> str:
    """Try one architecture in one way; return "ok", the layers, or what is wrong."""
    model = tiny(kind)
    plan, state = WAYS[way](model, folder)
    back = type(model).from_pretrained(folder / "small")
    if state is not None:
        check_same(state, back.state_dict(), "saved and opened")
    check_faithful(model, back)
    back.save_pretrained(folder / "again")
    again = type(model).from_pretrained(folder / "again")
    check_same(back.state_dict(), again.state_dict(), "saved again")
    loaded = rf.load(type(model)(model.config).eval(), folder / "small")
    check_same(back.state_dict(), loaded.state_dict(), "rankfold.load")
    return f"ok, {len(plan.replaced)} of {len(plan.layers)} layers"


def check_same(expected: Any, actual: Any, what: str) -> None:
    """Check that two states are equal bit for bit.

    Raises:
        AssertionError: they are not.
    """
    assert expected.keys() == actual.keys(), (what, sorted(expected.keys() ^ actual.keys())[:3])
    for name, tensor in expected.items():
        assert tensor.dtype == actual[name].dtype, (what, name)
        assert torch.equal(*(t.nan_to_num() for t in (tensor, actual[name]))), (what, name)


def check_faithful(model: Any, back: Any) -> None:
    """Check that a compressed model is one of a model, by the errors that its plan states.

    Raises:
        AssertionError: it is not.
    """
    plans = recorded(back.config)
    expected = model.state_dict()
    if not plans:
        check_same(expected, back.state_dict(), "nothing replaced")
        return
    actual = rf.Compressed(back, plans[-1]).expanded(model).state_dict()
    errors = {layer.path: layer.error for layer in plans[-1].replaced}
    for name, tensor in expected.items():
        error = errors.get(name.removesuffix(".weight"), errors.get(name))
        if error is None:
            check_same({name: tensor}, {name: actual[name]}, "left alone")
        else:
            distance = (actual[name] - tensor).double().norm() / tensor.double().norm()
            assert abs(float(distance) - error) < _ROUNDING, (name, float(distance), error)


def main(kinds: list[str]) -> int:
    """Print all rows; return the number of those that are not ok."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    wrong = 0
    for kind in kinds or ARCHITECTURES:
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    outcome = row(kind, way, Path(folder))
                except Exception as error:
                    outcome, wrong = f"{type(error).__name__}: {error}"[:300], wrong + 1
            print(f"{kind:<28} {way:<6} {outcome}", flush=True)
    print(f"{wrong} of {len(WAYS) * len(kinds or ARCHITECTURES)} are not ok")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
