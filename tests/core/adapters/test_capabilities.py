from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from rankfold.adapters.capabilities import capabilities


class Reads:
    """An adapter that has nothing beyond what every adapter has."""

    def layers(self, model: Any) -> dict[str, str]:
        return {}


class Offers(Reads):
    def folded(self, model: Any, path: str) -> str:
        return ""

    def has_examples(self, array: Any) -> bool:
        return array.ndim > 1


def test_an_adapter_without_options_has_none() -> None:
    can = capabilities(Reads())  # type: ignore[arg-type]  # no more is asked
    assert can.name == "Reads"
    options = {f.name: getattr(can, f.name) for f in fields(can)}
    assert {name for name, part in options.items() if part is not None} == {"adapter", "name"}
    assert can.builder is can.adapter


def test_an_option_is_the_adapter_itself() -> None:
    adapter: Any = Offers()
    can = capabilities(adapter)
    assert can.folding is adapter
    assert can.tells_examples is adapter
    assert can.times is None


def test_each_option_is_found_by_the_protocol_of_its_name() -> None:
    """An adapter with every method there is has every option, each under its own type."""

    class Everything:
        image_axes = (2, 3)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            return lambda *arguments: None

    can = capabilities(Everything())
    missing = [f.name for f in fields(can) if getattr(can, f.name) is None]
    assert missing == []


def test_the_adapter_says_which_arrays_have_examples() -> None:
    adapter: Any = Offers()
    x = np.zeros((6, 3)), np.zeros(4)
    calibration = capabilities(adapter).calibration([x], None, None)
    assert calibration.examples == 6
