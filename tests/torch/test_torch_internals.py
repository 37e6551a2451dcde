"""What is read of PyTorch beyond its public interface says what its name does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankfold_torch import torch_internals as internals


def test_the_version_of_a_tensor_rises_when_a_view_of_it_is_written_to() -> None:
    x = torch.ones(3, 5)
    before = internals.version_of(x)
    x.sum()
    assert internals.version_of(x) == before
    x[1].mul_(2.0)
    assert internals.version_of(x) > before


def test_views_have_the_storage_of_their_tensor() -> None:
    x = torch.ones(3, 5)
    assert internals.storage_of(x[1:]) == internals.storage_of(x.T) == internals.storage_of(x)
    assert internals.storage_of(x.clone()) != internals.storage_of(x)


def test_the_values_of_a_sparse_tensor_are_no_copy() -> None:
    sparse = torch.sparse_coo_tensor([[0, 2]], [3.0, 5.0], (7,), check_invariants=True)
    internals.stored_values(sparse)[1] = 11.0
    assert sparse.to_dense()[2] == 11.0


def test_the_padding_is_that_of_the_construction() -> None:
    conv = nn.Conv2d(3, 5, (3, 7), padding=(1, 2), padding_mode="circular")
    conv.padding = (0, 0)
    assert internals.padding_at_construction(conv) == (2, 2, 1, 1)


def test_buffers_that_are_not_saved_are_those_that_the_state_lacks() -> None:
    module = nn.Module()
    module.register_buffer("kept", torch.ones(2))
    module.register_buffer("dropped", torch.ones(3), persistent=False)
    assert internals.unsaved_buffers(module) == {"dropped"}
    assert list(module.state_dict()) == ["kept"]


def test_hooks_of_both_kinds_are_listed_until_they_are_removed() -> None:
    module = nn.Linear(3, 5)

    def before(*_: object) -> None: ...
    def after(*_: object) -> None: ...

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True, with_kwargs=True)
    assert internals.forward_hooks(module) == [before, after]
    internals.remove_hooks(module, [before, after])
    assert internals.forward_hooks(module) == []
    module(torch.ones(2, 3))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace`:DeprecationWarning")
def test_a_trace_is_noticed() -> None:
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(internals.is_traced())
        return x + 1

    function(torch.ones(2))
    torch.jit.trace(function, torch.ones(2), check_trace=False)
    assert seen == [False, True]


def test_schemas_say_what_is_written_to() -> None:
    assert internals.schema_of(torch.ops.aten.add_.Tensor).is_mutable
    assert not internals.schema_of(torch.ops.aten.add.Tensor).is_mutable
