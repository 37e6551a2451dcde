from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rankfold as rf
from rankfold.decompose.base import Factorization
from rankfold.decompose.guarded import Guarded
from rankfold.decompose.spectrum import Spectrum
from rankfold.decompose.svd import SVD
from rankfold.errors import Refused
from rankfold.ops import Linear

OP = Linear(np.random.default_rng(0).standard_normal((11, 7)))


class Plugin:
    """A decomposition of somebody else's, which passes on what `SVD` gives."""

    name = "theirs"

    def __getattr__(self, name: str) -> Any:
        return getattr(SVD, name)


def decomposed(method: Any, op: rf.Op = OP) -> Factorization:
    return Guarded("theirs", method).decompose(
        op, (3,), spectrum=Spectrum(op), placement="balanced", rng=np.random.default_rng(0)
    )


def test_an_exception_of_a_plugin_is_a_refusal_that_names_it() -> None:
    class Fails(Plugin):
        def max_ranks(self, op: rf.Op) -> tuple[int, ...]:
            raise ZeroDivisionError("by nothing")

    with pytest.raises(Refused, match=r"theirs.*ZeroDivisionError.*by nothing"):
        Guarded("theirs", Fails()).max_ranks(OP)


def test_a_plugin_that_writes_into_its_op_changes_no_layer() -> None:
    class Writes(Plugin):
        def refuse(self, op: rf.Op) -> None:
            op.weight.flags.writeable = True
            op.weight[:] = 0.0

    before = OP.weight.copy()
    assert Guarded("theirs", Writes()).refuse(OP) is None
    assert np.array_equal(OP.weight, before)


def test_the_chain_of_a_plugin_is_a_copy_that_cannot_be_written_to() -> None:
    chains = []

    class Keeps(Plugin):
        def decompose(self, *args: Any, **settings: Any) -> Factorization:
            factored = SVD.decompose(*args, **settings)
            chains.append(factored.chain)
            return factored

    chain = decomposed(Keeps()).chain
    for stage, original in zip(chain, chains[0], strict=True):
        assert np.array_equal(stage.weight, original.weight)
        assert not np.shares_memory(stage.weight, original.weight)
        assert not stage.weight.flags.writeable


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("no factorization", "gave str, not Factorization"),
        (Factorization((), 0.1), "not of ops"),
        (Factorization((OP,), 0.1), "other layers than template"),
    ],
)
def test_a_result_that_is_none_is_a_refusal(result: object, message: str) -> None:
    class Gives(Plugin):
        def decompose(self, *args: Any, **settings: Any) -> Any:
            return result

    with pytest.raises(Refused, match=message):
        decomposed(Gives())


def test_a_method_that_estimates_no_errors_offers_a_few_ranks_without() -> None:
    class Silent:
        name = "silent"

        def max_ranks(self, op: rf.Op) -> tuple[int, ...]:
            return (40, 3)

    offered = Guarded("silent", Silent()).error_at_ranks(OP, Spectrum(OP), 1)  # type: ignore[arg-type]  # no more is asked
    assert offered[-1] == ((40, 3), None)
    assert all(error is None for _, error in offered)
    assert [ranks[0] for ranks, _ in offered] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert min(ranks[1] for ranks, _ in offered) == 1


def test_modes_that_are_none_are_a_refusal_and_those_of_plugins_have_no_name() -> None:
    class Nothing(Plugin):
        def modes(self, *args: object) -> tuple[()]:
            return ()

    with pytest.raises(Refused, match="modes gave none"):
        Guarded("theirs", Nothing()).modes(OP, Spectrum(OP))
    (theirs,) = Guarded("theirs", Plugin()).modes(OP, Spectrum(OP))
    (ours,) = Guarded("svd", SVD).modes(OP, Spectrum(OP))
    assert (theirs.name, ours.name) == ("", "weight")
    assert np.array_equal(theirs.values, ours.values)
