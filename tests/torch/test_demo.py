"""The parts of the demo's network: shapes, training, accuracy."""

import numpy as np
import torch
from torch import nn

from rankfold_torch.demo import TorchDemo


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))


def test_the_network_is_that_of_its_seed_and_its_head_gives_the_classes() -> None:
    demo = TorchDemo(3)
    network, again, other = (TorchDemo(seed).network() for seed in (3, 3, 4))
    image = demo.inputs(np.ones((5, 1, 8, 8), np.float32))
    assert image.shape == (1, 1, 8, 8)
    assert network.eval()(image).shape == (1, 10)
    assert network.get_submodule(demo.head) is list(network.children())[-1]
    first, second, third = (next(net.parameters()) for net in (network, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_training_lowers_the_loss_and_is_that_of_its_seed() -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((70, 1, 8, 8)).astype(np.float32)
    labels = np.arange(70) % 10
    models, epochs = (tiny(), tiny()), []
    for model in models:
        TorchDemo(0).train(
            model, images, labels, epochs=3, learning_rate=0.01, advance=lambda: epochs.append(1)
        )
    assert len(epochs) == 6
    assert not models[0].training
    assert torch.equal(models[0][2].weight, models[1][2].weight)
    with torch.no_grad():
        before, after = (
            nn.functional.cross_entropy(model(torch.from_numpy(images)), torch.tensor(labels))
            for model in (tiny().eval(), models[0])
        )
    assert after < before


def test_accuracy_is_the_share_of_images_that_are_right() -> None:
    class Brightest(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :10]

    labels = np.array([3, 1, 0, 9])
    images = np.zeros((4, 1, 8, 8), np.float32)
    for image, label in zip(images, [3, 2, 0, 9], strict=True):
        image[0, label // 8, label % 8] = 1
    assert TorchDemo(0).accuracy(Brightest(), images, labels) == 0.75


def test_a_model_that_does_more_takes_longer() -> None:
    images = np.ones((30, 1, 8, 8), np.float32)
    light, heavy = nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(64, 4096))
    times = TorchDemo(0).latencies([light, heavy], images)
    assert times[0] < times[1]
