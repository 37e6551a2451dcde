"""The model and its compressed self, side by side."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rankfold.calibration.batches import Calibration
from rankfold.calibration.moments import RegressionSums
from rankfold.errors import RankfoldError
from rankfold.ops import Chain, Embedding, Linear, Op
from rankfold.testing.visits import Visits
from rankfold_torch.adapter import TorchAdapter

Untouched = Callable[[nn.Module], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu(self.norm(self.conv(x)), inplace=True)
        y += x
        return y


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.first, self.second = Block(), Block()
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.stem(x))
        return self.head(self.second(self.first(x)).mean((2, 3)))


def ops_of(model: nn.Module) -> dict[str, Op]:
    adapter = TorchAdapter()
    return {path: adapter.read(model, path) for path in adapter.layers(model)}


def truncated(op: Op, rank: int = 2) -> Chain:
    """The layer with the best weight of a rank, in one piece."""
    flat = op.weight.reshape(len(op.weight), -1)
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    s[rank:] = 0
    return (replace(op, weight=((u * s) @ v).reshape(op.weight.shape)),)


def run(
    model: nn.Module,
    batches: Any,
    visit: Callable[..., Chain],
    *,
    sequential: bool = True,
    layers: Mapping[str, Op] | None = None,
) -> Mapping[str, float]:
    return TorchAdapter().run_paired(
        model,
        Calibration.of(batches, None, None),
        ops_of(model) if layers is None else layers,
        Visits(visit),
        sequential=sequential,
        rng=np.random.default_rng(0),
    )


def recorded(
    ops: Mapping[str, Op], chain: Callable[[Op], Chain]
) -> tuple[Callable[..., Chain], dict[str, tuple[RegressionSums | None, RegressionSums | None]]]:
    met: dict[str, tuple[RegressionSums | None, RegressionSums | None]] = {}

    def visit(path: str, fit: RegressionSums | None, held: RegressionSums | None) -> Chain:
        assert path not in met
        met[path] = fit, held
        return chain(ops[path])

    return visit, met


ORDER = ["stem", "first.conv", "second.conv", "head"]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_layers_themselves_change_nothing(
    sequential: bool, dtype: torch.dtype, untouched: Untouched
) -> None:
    model = Residual().to(dtype)
    visit, met = recorded(ops_of(model), lambda op: (op,))
    batches = [torch.randn(n, 3, 9, 8).to(dtype) for n in (5, 3)]
    kept = [batch.clone() for batch in batches]
    with untouched(model):
        errors = run(model, batches, visit, sequential=sequential)
    assert list(met) == ORDER
    assert errors == dict.fromkeys(ORDER, 0.0)
    assert all(map(torch.equal, batches, kept))
    for path in ORDER:
        fit, held = met[path]
        assert fit is not None
        assert held is not None
        assert fit.count == 3 * held.count
        np.testing.assert_allclose(fit.xx, fit.xx.swapaxes(1, 2), rtol=1e-6)


@pytest.mark.parametrize("sequential", [False, True])
def test_sums_and_errors_are_those_of_a_direct_computation(sequential: bool) -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 4)).eval()
    ops = ops_of(model)
    visit, met = recorded(ops, truncated)
    batches = [torch.randn(6, 5), torch.randn(5, 5)]
    errors = run(model, batches, visit, sequential=sequential)
    adapter = TorchAdapter()
    small = {path: adapter.refilled(model, path, truncated(op)[0]) for path, op in ops.items()}
    x = torch.cat(batches)
    with torch.no_grad():
        first, first_hat = model[0](x), small["0"](x)
        inner = (first_hat if sequential else first).relu()
        last, last_hat = model[2](first.relu()), small["2"](inner)
    assert errors["0"] == pytest.approx(float((first - first_hat).norm() / first.norm()), rel=1e-5)
    assert errors["2"] == pytest.approx(float((last - last_hat).norm() / last.norm()), rel=1e-5)
    fit, held = met["2"]
    mask = torch.arange(11) % 4 == 3
    for joint, rows in ((fit, ~mask), (held, mask)):
        assert joint is not None
        a, b = inner[rows].double(), last[rows].double()
        assert joint.count == len(a)
        np.testing.assert_allclose(joint.xx[0], a.T @ a, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(joint.yx[0], b.T @ a, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(joint.square[0], b.square().sum(), rtol=1e-4)
        if rows is mask:
            assert joint.yy is not None
            np.testing.assert_allclose(joint.yy[0], b.T @ b, rtol=1e-4, atol=1e-5)
        else:
            assert joint.yy is None
        np.testing.assert_allclose(joint.x[0], a.sum(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(joint.y[0], b.sum(0), rtol=1e-4, atol=1e-5)


def test_losses_before_reach_the_layers_after(untouched: Untouched) -> None:
    model = Residual()
    x = torch.randn(8, 3, 9, 8)
    found = {}
    for sequential in (False, True):
        visit, met = recorded(ops_of(model), truncated)
        with untouched(model):
            errors = run(model, x, visit, sequential=sequential)
        fit = met["head"][0]
        assert fit is not None
        found[sequential] = errors["head"], fit.xx
        assert errors["stem"] > 0
    assert found[True][0] > found[False][0] * 1.01
    assert not np.allclose(found[True][1], found[False][1])


def test_convolutions_meet_their_patches() -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 6, 3, stride=2, padding=1, groups=3, padding_mode="circular"),
        nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1, output_padding=1),
    )
    ops = ops_of(model)
    visit, met = recorded(ops, lambda op: (op,))
    run(model, torch.randn(12, 3, 16), visit)
    for path, op in ops.items():
        fit = met[path][0]
        assert fit is not None
        assert op.bias is not None
        weight = op.weight.reshape(op.groups, len(op.weight) // op.groups, -1)
        bias = op.bias.reshape(op.groups, -1)
        y = np.einsum("god,gd->go", weight, fit.x) + fit.count * bias
        np.testing.assert_allclose(fit.y, y, rtol=1e-4, atol=1e-3)
        cross = weight @ fit.xx + bias[:, :, None] * fit.x[:, None, :]
        np.testing.assert_allclose(fit.yx, cross, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("examples", "kept"), [(1, None), (2, 1), (3, 1), (4, 1), (9, 2)])
def test_a_quarter_of_the_examples_is_held_out(examples: int, kept: int | None) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    visit, met = recorded(ops_of(model), lambda op: (op,))
    run(model, torch.randn(examples, 7, 3), visit)
    fit, held = met["0"]
    assert fit is not None
    assert fit.count == 7 * (examples - (kept or 0))
    assert (None if held is None else held.count) == (None if kept is None else 7 * kept)


def test_a_shared_layer_is_met_once_and_replaced_everywhere() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    ops = ops_of(model)
    visit, met = recorded(ops, truncated)
    x = torch.randn(10, 4)
    errors = run(model, x, visit)
    small = TorchAdapter().refilled(model, "0", truncated(ops["0"])[0])
    with torch.no_grad():
        y, y_hat = layer(x), small(x)
        z, z_hat = layer(y.relu()), small(y_hat.relu())
    apart = (y - y_hat).square().sum() + (z - z_hat).square().sum()
    size = y.square().sum() + z.square().sum()
    assert list(met) == ["0"]
    assert errors["0"] == pytest.approx(float((apart / size).sqrt()), rel=1e-5)


class Routed(nn.Module):
    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.router = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.router(x)
        if self.whole:
            return self.last(self.experts[int(scores.mean(0).argmax())](x))
        y = torch.zeros_like(x)
        chosen = scores.argmax(1)
        for index, expert in enumerate(self.experts):
            mine = chosen == index
            if mine.any():
                y[mine] = expert(x[mine])
        return self.last(y)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_routing_that_depends_on_the_data(
    whole: bool, sequential: bool, untouched: Untouched
) -> None:
    model = Routed(whole)
    ops = ops_of(model)

    def chain(op: Op) -> Chain:
        return (replace(op, weight=-op.weight),) if op is ops["router"] else truncated(op)

    visit, met = recorded(ops, chain)
    batches = [torch.randn(6, 4) + shift for shift in (0, 2, -2, 4)]
    with untouched(model):
        errors = run(model, batches, visit, sequential=sequential)
    assert set(met) == set(errors)
    assert {"router", "last"} < set(met)
    assert met["router"][0] is not None
    for path in met:
        assert np.isfinite(errors[path])
        if path.startswith("experts") and sequential:
            assert met[path] == (None, None)
    if not sequential:
        assert met["last"][0] is not None


def test_chains_and_tables() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5))
    ops = ops_of(model)
    table, matrix = ops["0"], ops["1"]
    chains: dict[str, Chain] = {
        "0": (Embedding(table.weight), Linear(np.eye(4, dtype=np.float32))),
        "1": (Linear(np.eye(4, dtype=np.float32)), Linear(matrix.weight, matrix.bias)),
    }
    met = {}

    def visit(path: str, fit: RegressionSums | None, held: RegressionSums | None) -> Chain:
        met[path] = fit
        return chains[path]

    errors = run(model, torch.randint(7, (5, 3)), visit)
    assert met["0"] is None
    assert met["1"] is not None
    assert max(errors.values()) < 1e-6


def test_a_chain_that_cannot_be_built_leaves_the_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    ops = ops_of(model)

    def visit(path: str, fit: RegressionSums | None, held: RegressionSums | None) -> Chain:
        if path == "0":
            op = ops[path]
            return (Linear(op.weight[:, :2], op.bias, groups=2), Linear(np.eye(4)))
        return (ops[path],)

    assert run(model, torch.randn(5, 4), visit) == {"1": 0.0}


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.last(y + torch.randn_like(y))


def test_both_runs_draw_the_same_numbers(untouched: Untouched) -> None:
    model = Drawing()
    visit, _ = recorded(ops_of(model), lambda op: (op,))
    x = torch.randn(5, 4)
    with untouched(model):
        assert run(model, x, visit) == {"first": 0.0, "last": 0.0}


def test_autocast_reaches_both_runs() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    seen = []
    model[0].register_forward_hook(lambda module, args, y: seen.append(y.dtype))
    layers = {"1": TorchAdapter().read(model, "1")}
    visit, met = recorded(layers, lambda op: truncated(op, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = run(model, torch.randn(5, 4), visit, layers=layers)
    assert seen == [torch.bfloat16] * 2
    assert met["1"][0] is not None
    assert 0 < errors["1"] < 1


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if len(x) == 2:
            raise KeyError("no such thing")
        return self.last(y)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_batch_that_fails_is_named(sequential: bool, untouched: Untouched) -> None:
    model = Broken().train()
    visit, _ = recorded(ops_of(model), lambda op: (op,))
    batches = [torch.randn(4, 3), torch.randn(2, 3)]
    with untouched(model), pytest.raises(RankfoldError, match="batch 1 with KeyError"):
        run(model, batches, visit, sequential=sequential)


@pytest.mark.parametrize("sequential", [False, True])
def test_an_error_of_the_visitor_comes_through(sequential: bool, untouched: Untouched) -> None:
    model = Residual()

    def visit(path: str, fit: RegressionSums | None, held: RegressionSums | None) -> Chain:
        if path == "second.conv":
            raise LookupError(path)
        return (ops_of(model)[path],)

    x = torch.randn(4, 3, 9, 8)
    with untouched(model), pytest.raises(LookupError, match=r"second\.conv"):
        run(model, x, visit, sequential=sequential)


def test_a_forward_of_its_own_is_kept() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    usual = model[0].forward
    own = lambda x: usual(x) * 2  # noqa: E731
    model[0].forward = own
    ops = {path: Linear(model[int(path)].weight.detach().numpy()) for path in "01"}

    def visit(path: str, fit: RegressionSums | None, held: RegressionSums | None) -> Chain:
        assert model[0].forward is own
        assert "forward" not in vars(model[1])
        return (Linear(np.zeros((1, 3))), Linear(np.zeros((*ops[path].weight.shape[:1], 1))))

    errors = run(model, torch.randn(4, 3), visit, layers=ops)
    assert model[0].forward is own
    assert errors == pytest.approx({"0": 1.0, "1": 1.0})


class Keeping(nn.Module):
    """Keeps what it adds later on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(7, 7) for _ in range(3))
        self.skip: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.skip = self.a(x)
        y = self.b(self.skip.relu())
        y, self.skip = y + self.skip, None
        return self.c(y)


class Buffered(Keeping):
    """The same, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        del self.skip
        self.register_buffer("skip", None, persistent=False)


class Passing(Keeping):
    """The same, with a local variable."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.a(x)
        return self.c(self.b(skip.relu()) + skip)


def test_what_modules_keep_on_themselves_is_not_shared_by_runs() -> None:
    batches = [torch.randn(n, 7) for n in (9, 9, 4)]
    torch.manual_seed(0)
    keeping = Keeping()
    passing, buffered = Passing(), Buffered()
    for other in (passing, buffered):
        other.load_state_dict(keeping.state_dict())
    errors = []
    for model in (keeping, passing, buffered):
        visit, _ = recorded(ops_of(model), truncated)
        errors.append(run(model, batches, visit, sequential=True))
    assert errors[0] == errors[1] == errors[2]
    assert keeping.skip is None
