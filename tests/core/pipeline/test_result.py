from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rankfold_numpy.adapter import NumpyAdapter
from rankfold_numpy.framework import Dense, Model
from tests.core.numpy_models import model

import rankfold as rf
from rankfold.errors import RankfoldError, Refused
from rankfold.pipeline.result import Compressed

X = np.random.default_rng(3).standard_normal((32, 40)).astype(np.float32)


@pytest.fixture(scope="module")
def small() -> Compressed:
    return rf.compress(model(40, 30, 20), rf.Ranks(5), adapter=NumpyAdapter())


def test_a_result_is_shown_by_what_was_done(small: Compressed) -> None:
    assert repr(small).startswith("Compressed(Model, Ranks(ranks=5): 2 of 2 layers replaced, param")


def test_without_a_file_the_report_is_the_table(small: Compressed) -> None:
    assert small.report() == str(small.plan)


def test_with_a_file_it_is_the_page(small: Compressed, tmp_path: Path) -> None:
    assert small.report(tmp_path / "a.html") == tmp_path / "a.html"
    assert "Truncated SVD, rank 5" in (tmp_path / "a.html").read_text(encoding="utf-8")


class Expands(NumpyAdapter):
    """An adapter that gives back a dense layer for each chain, in a copy or in place."""

    def expanded(self, network: Any, compressed: Any, paths: Sequence[str]) -> Any:
        dense = copy.deepcopy(compressed)
        self.expand(network, dense, paths)
        return dense

    def expand(self, network: Any, compressed: Any, paths: Sequence[str]) -> None:
        for path in paths:
            chain = compressed.layers[int(path)]
            if not isinstance(chain, Model):
                raise Refused(f"{path} holds no chain")
            first, last = chain.layers
            compressed.layers[int(path)] = Dense(first.kernel @ last.kernel, last.bias)


def test_an_expanded_model_computes_what_its_chains_do(small: Compressed) -> None:
    dense = small.expanded(model(40, 30, 20), adapter=Expands())
    assert [type(layer) for layer in dense.layers] == [Dense, Dense]
    np.testing.assert_allclose(dense(X), small.model(X), rtol=1e-4, atol=1e-4)
    assert isinstance(small.model.layers[0], Model)


def test_a_model_is_expanded_in_place() -> None:
    small = rf.compress(model(40, 30, 20), rf.Ranks(5), adapter=NumpyAdapter())
    dense = small.expanded(model(40, 30, 20), inplace=True, adapter=Expands())
    assert dense is small.model
    with pytest.raises(RankfoldError, match="the model cannot be expanded: 0 holds no chain"):
        small.expanded(model(40, 30, 20), adapter=Expands())


def test_an_adapter_that_cannot_is_named(small: Compressed) -> None:
    with pytest.raises(RankfoldError, match=r"NumpyAdapter cannot expand models$"):
        small.expanded(model(40, 30, 20), adapter=NumpyAdapter())
    with pytest.raises(RankfoldError, match="NumpyAdapter cannot expand models in place; leave"):
        small.expanded(model(40, 30, 20), inplace=True, adapter=NumpyAdapter())


def test_a_model_without_the_layers_is_an_error(small: Compressed) -> None:
    with pytest.raises(RankfoldError, match="'1'"):
        small.expanded(model(40, 30), adapter=Expands())
