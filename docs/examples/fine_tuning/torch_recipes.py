"""Fine-tuning a compressed PyTorch model: labels, parameter groups, distillation, gradual steps.

    python docs/examples/fine_tuning/torch_recipes.py

trains a network on scikit-learn's digits, compresses it to a tenth of its multiply-accumulates by
its weights alone, and fine-tunes it in several ways, each for the same number of steps; then shows
what calibration data makes of it. Prints the test errors; a few minutes.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import rankfold as rf

SHARE, STEPS, RATE = 0.1, 120, 2e-3
TEMPERATURE = 3.0
Groups = Iterable[dict[str, object]]
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and labels to train on, and to test on."""
    data = load_digits()
    images = torch.from_numpy((data.images[:, None] / 16).astype(np.float32))
    labels = torch.from_numpy(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[449:], order[:449]
    return images[train], labels[train], images[test], labels[test]


TRAIN_X, TRAIN_Y, TEST_X, TEST_Y = digits()


def network() -> nn.Module:
    """Four convolutions with BatchNorm."""
    layers: list[nn.Module] = []
    for into, out in ((1, 48), (48, 96), (96, 96), (96, 96)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    layers.insert(6, nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


def labelled(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels."""
    return functional.cross_entropy(model(x), y)


def distilled(teacher: nn.Module) -> Loss:
    """Half the labels, half the softened predictions of the original (Hinton, 1503.02531)."""
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scores = model(x)
        soft = functional.kl_div(
            functional.log_softmax(scores / TEMPERATURE, 1),
            functional.log_softmax(teacher(x) / TEMPERATURE, 1),
            reduction="batchmean",
            log_target=True,
        )
        return 0.5 * functional.cross_entropy(scores, y) + 0.5 * TEMPERATURE**2 * soft

    return loss


def groups(small: rf.Compressed) -> Groups:
    """The factors with the full learning rate and no weight decay; the rest slowly."""
    factors: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in small.model.named_parameters():
        (factors if small.plan.layer_of(name) is not None else others).append(parameter)
    return [
        {"params": factors, "lr": RATE, "weight_decay": 0.0},
        {"params": others, "lr": 0.3 * RATE, "weight_decay": 0.0},
    ]


def train(model: nn.Module, loss: Loss, steps: int, parameters: Groups | None, seed: int) -> None:
    """AdamW with a one-cycle learning rate, in place."""
    trained = [{"params": list(model.parameters())}] if parameters is None else list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.02)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(TRAIN_X), (64,), generator=generator)
        optimizer.zero_grad()
        loss(model, TRAIN_X[chosen], TRAIN_Y[chosen]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def error(model: nn.Module) -> float:
    """Test images classified wrong, in per cent."""
    return 100.0 * float((model.eval()(TEST_X).argmax(1) != TEST_Y).float().mean())


def compress(model: nn.Module, share: float, batches: object = None) -> rf.Compressed:
    """To a share of the MACs."""
    return rf.compress(model, rf.Budget(macs=share), inputs=TEST_X[:1], calibration=batches)


def recipes(seed: int, steps: int) -> dict[str, float]:
    """Test errors of the original, and of the compressed model after each recipe."""
    torch.manual_seed(seed)
    model = network()
    train(model, labelled, 5 * steps, None, seed)
    errors = {"original": error(model)}
    small = compress(model, SHARE)
    errors["compressed"] = error(small.model)
    soft = distilled(model)
    for name, loss, grouped in (
        ("labels", labelled, False),
        ("parameter groups", labelled, True),
        ("distillation", soft, False),
        ("distillation, parameter groups", soft, True),
    ):
        tuned = copy.deepcopy(small)
        train(tuned.model, loss, steps, groups(tuned) if grouped else None, seed)
        errors[name] = error(tuned.model)
    first = compress(model, 2 * SHARE)
    train(first.model, labelled, steps // 2, None, seed)
    second = compress(first.expanded(model), SHARE)
    train(second.model, labelled, steps - steps // 2, None, seed)
    errors["labels, in two steps"] = error(second.model)
    informed = compress(model, SHARE, TRAIN_X[:256].split(64))
    errors["compressed with data"] = error(informed.model)
    train(informed.model, labelled, steps, None, seed)
    errors["compressed with data, labels"] = error(informed.model)
    return errors


def main() -> None:
    """Prints the mean test error of each recipe."""
    parser = argparse.ArgumentParser(description="recipes for fine-tuning, compared")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    errors = [recipes(seed, options.steps) for seed in range(options.seeds)]
    print(f"test error in per cent, mean and standard deviation over {options.seeds} seeds")
    for name in errors[0]:
        values = [draw[name] for draw in errors]
        print(f"{name:32} {np.mean(values):5.2f} ± {np.std(values):.2f}")


if __name__ == "__main__":
    main()
