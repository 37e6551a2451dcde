"""What a divergence on held-out examples says of a compressed model."""

from __future__ import annotations

import numpy as np
import pytest

from rankfold.calibration.batches import Calibration, Loss
from rankfold.calibration.losses import estranged


def of(loss: Loss) -> Calibration:
    return Calibration.of([np.ones((4, 2))], None, loss)


@pytest.mark.parametrize("loss", ["outputs", "cross_entropy"])
def test_a_model_that_is_another_network_is_told(loss: str) -> None:
    assert estranged(of(loss), 0.01) is None
    remark = estranged(of(loss), 0.81)
    assert remark is not None
    assert ("90%" if loss == "outputs" else "0.81 nats") in remark
    assert "budget" in remark


def test_nothing_is_known_of_a_loss_of_the_user() -> None:
    assert estranged(of(lambda outputs, batch: 0.0), 1e6) is None
