from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rankfold_numpy.framework import Dense, Model
from tests.core.numpy_models import Gathers, kernel, model, session_of

import rankfold as rf
from rankfold.calibration.moments import LayerMoments
from rankfold.errors import RankfoldError
from rankfold.pipeline.calibrate import calibrate

X = np.random.default_rng(3).standard_normal((32, 40)).astype(np.float32)


def test_moments_are_those_of_the_batches_and_their_arrays_are_kept() -> None:
    session = session_of(model(40, 30, 20), adapter=Gathers())
    calibrated = calibrate(session, [X[:16], X[16:]], None, None)
    assert calibrated.batches is not None
    assert calibrated.batches.examples == 32
    assert calibrated.moments is not None
    np.testing.assert_allclose(calibrated.moments["0"].inputs[0], X.T @ X / 32, rtol=1e-4)
    assert list(calibrated.moments) == ["0", "1"]
    assert calibrated.moments.loss == "outputs"


def test_too_few_examples_are_not_used_and_the_plan_says_so() -> None:
    calibrated = calibrate(session_of(model(40, 30), adapter=Gathers()), [X[:15]], None, None)
    assert calibrated.batches is calibrated.moments is None
    assert calibrated.remarks == ("calibration is not used: 15 predictions; give 16",)


def test_moments_that_were_gathered_before_spare_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(model(40, 30, 20), adapter=Gathers())
    moments = calibrate(session, [X], None, None).moments
    monkeypatch.setattr(Gathers, "moments", lambda *arguments: pytest.fail("a pass"))
    alone = calibrate(session, None, None, moments)
    assert (alone.batches, alone.moments) == (None, moments)
    both = calibrate(session, [X[:4]], None, moments)
    assert both.moments is moments
    assert both.batches is not None


def test_without_data_there_is_nothing() -> None:
    nothing = calibrate(session_of(model(40, 30)), None, None, None)
    assert (nothing.batches, nothing.moments, nothing.remarks) == (None, None, ())


def moments_of(size: int, path: str = "0") -> rf.Moments:
    layer = LayerMoments(np.eye(size)[None], np.zeros((1, size)), None, 50, 1.0)
    return rf.Moments({path: layer})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, {"0": 1}), r"moments: dict; give what rankfold\.gather\(\) returned"),
        ((None, "outputs", None), "loss= needs calibration data; pass calibration="),
        (([X], None, None), "NumpyAdapter gathers no moments: leave calibration= out"),
        ((None, None, moments_of(41)), "moments: layer '0': .*gather them for this model"),
        ((None, None, moments_of(40, "head")), "moments: of head .*none of which is a layer"),
    ],
)
def test_data_that_do_not_fit_are_an_error(arguments: Any, message: str) -> None:
    with pytest.raises(RankfoldError, match=message):
        calibrate(session_of(model(40, 30)), *arguments)


def test_moments_of_a_layer_that_cannot_be_read_are_passed_over() -> None:
    tied = kernel(30, 30)
    network = Model([Dense(kernel(40, 30)), Dense(tied), Dense(tied)])
    moments = rf.Moments({**moments_of(40), **moments_of(7, "1")})
    assert calibrate(session_of(network), None, None, moments).moments is moments
