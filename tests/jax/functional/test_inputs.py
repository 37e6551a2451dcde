"""Example inputs, taken apart and put together again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankfold_jax.functional.inputs import Inputs, failed, has_examples, is_array

X = np.ones((4, 3), np.float32)


def test_keys_of_random_generators_have_no_axis_of_examples() -> None:
    keys = (jax.random.key(0), jax.random.split(jax.random.key(0), 3), jax.random.PRNGKey(0))
    assert not any(map(has_examples, keys))
    assert has_examples(X)
    assert has_examples(jnp.zeros((2,), jnp.int32))


def taken(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        (X, ("new",), {}),
        ((X, True, None, [X]), ("new", True, None, ["new"]), {}),
        ({"x": X, "mode": "train"}, (), {"x": "new", "mode": "train"}),
    ],
)
def test_arrays_are_exchanged_and_the_rest_passed_on(
    inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    whole = Inputs(inputs)
    assert whole.examples == 4
    assert all(array is X for array in whole.arrays)
    assert whole.output(taken, ["new"] * len(whole.arrays)) == (args, kwargs)


def test_the_arrays_of_outputs_are_named() -> None:
    whole = Inputs(X)
    arrays = whole.call(lambda x: {"y": [x, "text"], "z": x + 1}, [X])
    assert [array.tolist() for array in arrays] == [X.tolist(), (X + 1).tolist()]
    assert whole.names == ["['y'][0]", "['z']"]


def test_one_trace_serves_inputs_of_the_same_shapes_and_flags() -> None:
    same = (Inputs((X, True)), Inputs((2 * X, True)))
    assert same[0].signature == same[1].signature
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert Inputs((shape, True)).signature == same[0].signature
    for other in ((X, False), (X[:2], True), (X.astype(np.float16), True), [X, True]):
        assert (Inputs(other).signature == same[0].signature) == isinstance(other, list)


def test_the_error_of_a_model_says_that_it_was_its_inputs() -> None:
    error = failed(ValueError("no such shape"), Inputs(X))
    assert "the model fails on them with ValueError: no such shape" in str(error)
    assert is_array(np.float32(1))
    assert not is_array(1.0)
