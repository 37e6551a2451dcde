"""VGG-16 and ResNet-50 with weights whose spectra are like those of trained ones."""

from __future__ import annotations

import torch
from tests.benchmarks.decomposition.weights import kernel, matrix
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
_LARGEST = 8192  # of a matrix that is drawn with a spectrum of its own


def vgg16() -> nn.Module:
    """Thirteen convolutions and three linear layers, for 224x224 images."""
    layers: list[nn.Module] = []
    into = 3
    for width in _VGG16:
        if width:
            layers += [nn.Conv2d(into, width, 3, padding=1), nn.ReLU()]
            into = width
        else:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096)]
    layers += [nn.ReLU(), nn.Linear(4096, 1000)]
    return filled(nn.Sequential(*layers))


def resnet50() -> nn.Module:
    """The bottleneck network of 50 layers, for 224x224 images."""
    return filled(ResNetForImageClassification(ResNetConfig(num_labels=1000)))


def filled(model: nn.Module) -> nn.Module:
    """The model with weights of a power-law spectrum and noise in every layer."""
    for seed, module in enumerate(model.modules()):
        if isinstance(module, nn.Conv2d):
            out, into, side, _ = module.weight.shape
            weight = kernel(out, into, side, seed=seed)
        elif isinstance(module, nn.Linear):
            out, into = module.weight.shape
            weight = matrix(out, min(into, _LARGEST), seed=seed)
            if into > _LARGEST:  # side by side, as positions of a flattened image are
                weight = torch.from_numpy(weight).repeat(1, -(-into // _LARGEST))[:, :into].numpy()
        else:
            continue
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weight) / weight.std() * 0.02)
    return model.eval()
