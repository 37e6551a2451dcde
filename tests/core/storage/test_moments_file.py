"""Files of moments that are not what they should be."""

import json
import os
import pickle
import weakref
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from tests.core.checkpoints.files import normal, sound

import rankfold as rf
from rankfold.calibration import array_store
from rankfold.calibration.moments import LayerMoments
from rankfold.calibration.separable_moment import SeparableMoment
from rankfold.storage import moments_file

INTO, OUT = 6, 4
POLICY = rf.Budget(params=0.7)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = {
        "a.weight": ("F32", (OUT, INTO), normal(0, OUT, INTO)),
        "a.bias": ("F32", (OUT,), normal(1, OUT)),
        "b.weight": ("F32", (OUT, INTO), normal(2, OUT, INTO)),
    }
    return sound(tmp_path / "x.safetensors", tensors)


def moments(seed: int = 0) -> LayerMoments:
    rng = np.random.default_rng(seed)
    x, g = rng.standard_normal((64, INTO)), rng.standard_normal((64, OUT))
    return LayerMoments((x.T @ x / 64)[None], x.mean(0)[None], (g.T @ g / 64)[None], 64, 1.0)


def stored(file: Path, about: object = None, **arrays: object) -> Path:
    """A sound file, except for what is given."""
    layers = {"a": moments(0), "b": moments(1)}
    found = {
        f"{place}.{name}": getattr(layer, name)
        for place, layer in enumerate(layers.values())
        for name in ("inputs", "mean", "grads")
    }
    for name, values in arrays.items():
        key = name.replace("_", ".")
        if values is None:
            del found[key]
        else:
            found[key] = np.ascontiguousarray(values)
    if about is None:
        about = facts()
    text = about if isinstance(about, str) else json.dumps(about)
    save_file(found, file, metadata={"rankfold.moments": text})
    return file


def facts(**changes: object) -> dict[str, object]:
    layers = [{"path": path, "samples": 64, "uses": 1.0} | changes for path in ("a", "b")]
    return {"version": 1, "loss": "outputs", "layers": layers}


def test_sound_moments_are_used(source: Path, tmp_path: Path) -> None:
    file = stored(tmp_path / "moments")
    plan = rf.compress_checkpoint(source, tmp_path / "out", POLICY, moments=file)
    assert plan["a"].moments == "patches"


@pytest.mark.parametrize("limit", [0, 2**20])
def test_moments_that_were_read_do_not_need_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(array_store, "LIMIT", limit)
    file = stored(tmp_path / "moments")
    read = rf.Moments.load(file)
    before = load_file(file)
    read.save(file)  # over the file that it was read from
    after = load_file(file)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    file.unlink()
    for copy in (read, pickle.loads(pickle.dumps(read))):
        assert copy.loss == "outputs"
        assert list(copy) == ["a", "b"]
        assert "c" not in copy
        np.testing.assert_array_equal(copy["b"].grads, moments(1).grads)


def test_arrays_of_several_types_are_written(tmp_path: Path) -> None:
    odd = LayerMoments(np.ones((1, 3), "float32"), np.ones((1, 3), "float16"), None, 9, 2.0)
    rf.Moments({"odd": odd, "a": moments()}, "outputs").save(tmp_path / "moments")
    assert {a.dtype.name for a in load_file(tmp_path / "moments").values()} == {
        "float16",
        "float32",
        "float64",
    }
    read = rf.Moments.load(tmp_path / "moments")
    np.testing.assert_array_equal(read["odd"].inputs, odd.inputs)
    np.testing.assert_array_equal(read["a"].grads, moments().grads)


def separable(seed: int = 0) -> LayerMoments:
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((2, 4, 4))
    parts = rng.uniform(1, 2, (2, 3)), half @ half.mT, rng.standard_normal((2, 12, 5))
    return LayerMoments(SeparableMoment(*parts), rng.standard_normal((2, 12)), None, 9, 2.0)


def test_separable_moments_come_back(tmp_path: Path) -> None:
    file = tmp_path / "moments"
    rf.Moments({"wide": separable(), "a": moments()}, "outputs").save(file)
    expected = separable().inputs
    assert isinstance(expected, SeparableMoment)
    for read in (
        rf.Moments.load(file),
        rf.Moments.of_file(file),
        rf.Moments.load(file, only="wide"),
    ):
        inputs = pickle.loads(pickle.dumps(read))["wide"].inputs
        assert isinstance(inputs, SeparableMoment)
        for name in ("variances", "positions", "factor"):
            np.testing.assert_array_equal(getattr(inputs, name), getattr(expected, name))
        np.testing.assert_array_equal(read["wide"].mean, separable().mean)


def test_only_files_of_separable_moments_need_the_second_version(tmp_path: Path) -> None:
    versions = []
    for layer in (moments(), separable()):
        rf.Moments({"layer": layer}).save(tmp_path / "moments")
        with safe_open(tmp_path / "moments", "numpy") as opened:
            versions.append(json.loads(opened.metadata()["rankfold.moments"])["version"])
    assert versions == [1, 2]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("variances", np.ones((2, 5))),
        ("variances", np.ones((1, 3))),
        ("positions", np.ones((2, 4, 3))),
        ("positions", np.full((2, 4, 4), np.nan)),
        ("factor", np.ones((2, 11, 5))),
        ("factor", np.ones((2, 12, 0))),
        ("factor", np.ones((2, 12))),
        ("mean", np.ones((2, 11))),
        ("inputs", np.ones((2, 12))),
        ("variances", None),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, name: str, array: object) -> None:
    file = tmp_path / "moments"
    rf.Moments({"wide": separable()}, "outputs").save(file)
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    arrays = load_file(file)
    arrays.pop(f"0.{name}", None)
    if array is not None:
        arrays[f"0.{name}"] = array
    save_file(arrays, file, metadata=metadata)
    with pytest.raises(rf.RankfoldError, match="holds no moments"):
        rf.Moments.load(file)


def test_a_checkpoint_reads_the_moments_of_one_layer_at_a_time(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[LayerMoments] = weakref.WeakSet()
    most, checked = 0, moments_file._checked

    def counted(*arguments: object) -> LayerMoments:
        nonlocal most
        layer = checked(*arguments)
        alive.add(layer)
        most = max(most, len(alive))
        return layer

    monkeypatch.setattr(moments_file, "_checked", counted)
    file = stored(tmp_path / "moments")
    rf.compress_checkpoint(source, tmp_path / "out", POLICY, moments=file)
    assert most == 1


WRONG = {
    "inputs of another layer": {"_": None, "0_inputs": np.ones((1, 7, 7))},
    "inputs of two groups": {"0_inputs": np.ones((2, INTO, INTO)), "0_mean": np.ones((2, INTO))},
    "inputs that are no square": {"0_inputs": np.ones((1, INTO, 7))},
    "inputs of one axis": {"0_inputs": np.ones(INTO)},
    "a scalar": {"0_inputs": np.float64(1.0)},
    "no inputs": {"0_inputs": None},
    "no mean": {"0_mean": None},
    "a mean of another layer": {"0_mean": np.ones((1, 7))},
    "a mean of one axis": {"0_mean": np.ones(INTO)},
    "gradients of another layer": {"0_grads": np.ones((1, 7, 7))},
    "gradients of one axis": {"0_grads": np.ones(OUT)},
    "NaN": {"0_inputs": np.full((1, INTO, INTO), np.nan)},
    "an infinite mean": {"0_mean": np.full((1, INTO), np.inf)},
    "infinite gradients": {"0_grads": np.full((1, OUT, OUT), -np.inf)},
    "integers": {"0_inputs": np.ones((1, INTO, INTO), int)},
    "truth": {"0_grads": np.ones((1, OUT, OUT), bool)},
    "complex numbers": {"0_inputs": np.ones((1, INTO, INTO), np.complex64)},
}
ABOUT = {
    "no JSON": "{",
    "a list": [],
    "nothing": {},
    "deep": "[" * 100_000,
    "long numbers": "9" * 100_000,
    "another version": {**facts(), "version": 3},
    "layers that are none": {**facts(), "layers": 1},
    "layers of text": {**facts(), "layers": ["a"]},
    "no layers": {**facts(), "layers": []},
    "too many layers": {**facts(), "layers": [*facts()["layers"], {"path": "c"}]},
    "no samples": facts(samples=None),
    "samples without end": facts(samples=float("inf")),
    "samples of none": facts(samples=float("nan")),
    "samples of zero": facts(samples=0),
    "negative samples": facts(samples=-1),
    "no uses": facts(uses="many"),
    "uses without end": facts(uses=float("inf")),
    "uses of none": facts(uses=float("nan")),
    "negative uses": facts(uses=-1.0),
    "paths of lists": facts(path=["a"]),
    "a layer twice": facts(path="a"),
    "something more": {**facts(), "more": 1},
    "text for samples": facts(samples="64"),
    "half a sample": facts(samples=64.5),
    "samples beyond all counting": facts(samples=10**400),
    "uses beyond all counting": facts(uses=10**300),
    "a number for the loss": {**facts(), "loss": 1},
    "no name of the loss": {**facts(), "loss": None},
}
for _key in facts():
    ABOUT[f"without {_key}"] = {k: v for k, v in facts().items() if k != _key}
for _key in facts()["layers"][0]:
    ABOUT[f"a layer without {_key}"] = {
        **facts(),
        "layers": [{k: v for k, v in layer.items() if k != _key} for layer in facts()["layers"]],
    }


@pytest.mark.parametrize("arrays", WRONG.values(), ids=WRONG)
def test_arrays_that_do_not_fit_are_refused(source: Path, tmp_path: Path, arrays: dict) -> None:
    try:
        file = stored(tmp_path / "moments", **{k: v for k, v in arrays.items() if k != "_"})
    except SafetensorError:
        pytest.skip("this safetensors writes no such numbers")
    refused(source, file)


@pytest.mark.parametrize("about", ABOUT.values(), ids=ABOUT)
def test_facts_that_do_not_fit_are_refused(source: Path, tmp_path: Path, about: object) -> None:
    refused(source, stored(tmp_path / "moments", about))


def refused(source: Path, file: Path) -> None:
    before = set(source.parent.iterdir())
    with pytest.raises(rf.RankfoldError, match="moments"):
        rf.compress_checkpoint(source, source.parent / "out", POLICY, moments=file)
    assert set(source.parent.iterdir()) == before


def test_odd_but_finite_moments_do_no_harm(source: Path, tmp_path: Path) -> None:
    cases = {
        "negative": {"0_inputs": -np.eye(INTO)[None], "0_grads": -np.eye(OUT)[None]},
        "zero": {"0_inputs": np.zeros((1, INTO, INTO)), "0_grads": np.zeros((1, OUT, OUT))},
        "huge": {"0_inputs": 1e300 * np.eye(INTO)[None]},
        "tiny": {"0_inputs": 1e-300 * np.eye(INTO)[None], "0_grads": 1e-300 * np.eye(OUT)[None]},
        "no gradients": {"0_grads": None},
        "a diagonal": {"0_inputs": np.ones((1, INTO))},
        "half precision": {"0_inputs": np.eye(INTO, dtype=np.float16)[None]},
        "not symmetric": {"0_inputs": np.triu(np.ones((INTO, INTO)))[None]},
    }
    for name, arrays in cases.items():
        file = stored(tmp_path / name, **arrays)
        for policy in (POLICY, rf.Energy(0.7), rf.Ratio(0.4)):
            try:
                rf.compress_checkpoint(source, tmp_path / "out", policy, moments=file)
            except rf.RankfoldError:
                continue


def test_moments_in_a_file_with_holes_are_refused_before_it_is_read(
    source: Path, tmp_path: Path
) -> None:
    file = stored(tmp_path / "moments")
    os.truncate(file, 2**40)
    refused(source, file)
    with pytest.raises(rf.RankfoldError, match="belong to no tensor"):
        rf.Moments.load(file)


def test_what_is_no_file_of_moments_is_refused(source: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    (tmp_path / "long").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    for name in ("pipe", "folder", "empty", "bytes", "long", "x.safetensors", "missing"):
        refused(source, tmp_path / name)
    with pytest.raises(rf.RankfoldError, match="moments"):
        rf.compress_checkpoint(source, tmp_path / "out", POLICY, moments="/dev/zero")
