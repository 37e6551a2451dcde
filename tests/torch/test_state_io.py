"""States that can be stored and those that cannot, and models that take the values."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import rankfold as rf


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def sparse_buffer() -> nn.Module:
    model = nn.Sequential(nn.Linear(11, 7))
    model.register_buffer("mask", torch.eye(3).to_sparse())
    return model


class Wrapped(torch.Tensor):
    """A tensor around another one, as those that are sharded and quantized."""

    inner: torch.Tensor

    @classmethod
    def of(cls, inner: torch.Tensor) -> "Wrapped":
        wrapped = cls._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        wrapped.inner = inner
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        inner = [arg.inner if isinstance(arg, cls) else arg for arg in args]
        return cls.of(func(*inner, **(kwargs or {})))


def wrapped_buffer() -> nn.Module:
    model = nn.Sequential(nn.Linear(11, 7))
    model.register_buffer("scale", Wrapped.of(torch.ones(3)))
    return model


UNSAVABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "meta": (lambda: nn.Sequential(nn.Linear(11, 7, device="meta")), "'0.weight' is on the meta"),
    "sparse": (sparse_buffer, "'mask' of the model's state is no dense tensor"),
    "wrapper": (wrapped_buffer, "'scale' of the model's state is a Wrapped without memory"),
    "extra state": (lambda: nn.Sequential(WithExtraState(11, 7)), "_extra_state"),
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_a_state_that_cannot_be_stored_is_an_error_and_leaves_nothing(
    case: str, tmp_path: Path
) -> None:
    make, message = UNSAVABLE[case]
    small = rf.compress(make(), rf.Ranks(2), exclude="*")
    with pytest.raises(rf.RankfoldError, match=message):
        small.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def with_views() -> nn.Module:
    model = nn.Sequential(nn.Linear(11, 7))
    model.register_buffer("whole", torch.arange(9.0))
    model.register_buffer("part", model.whole[2:5])
    return model


def with_expanded() -> nn.Module:
    model = nn.Sequential(nn.Linear(11, 7))
    model.register_buffer("ones", torch.ones(1).expand(5))
    return model


@pytest.mark.parametrize("make", [with_views, with_expanded])
def test_buffers_that_are_views_are_saved_and_loaded(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    small = rf.compress(make(), rf.Ranks(2))
    small.save(tmp_path / "saved")
    saved, loaded = small.model.state_dict(), rf.load(make(), tmp_path / "saved").state_dict()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)


class _Pair(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(23, 11), nn.Linear(11, 11)
        self.head = nn.Linear(11, 23, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.embed(ids)))


def test_weights_that_differ_are_not_loaded_into_one_tensor(tmp_path: Path) -> None:
    rf.compress(_Pair(tied=False), rf.Ranks(3), include="middle").save(tmp_path / "small")
    with pytest.raises(rf.RankfoldError, match="shares its memory with another tensor"):
        rf.load(_Pair(tied=True), tmp_path / "small")


class _Copies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(11, 11)

    def state_dict(self, *args: object, **options: object) -> dict[str, torch.Tensor]:
        return {n: v.clone() for n, v in super().state_dict(*args, **options).items()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_a_model_whose_state_is_a_copy_is_not_left_unfilled_silently(tmp_path: Path) -> None:
    rf.compress(_Copies(), rf.Ranks(3)).save(tmp_path / "small")
    with pytest.raises(rf.RankfoldError, match="state_dict gives copies"):
        rf.load(_Copies(), tmp_path / "small")
