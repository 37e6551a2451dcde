"""Whole networks: the common architectures, tiny, with random weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
import transformers as hf
from torch import nn

import rankfold as rf

Untouched = Callable[[nn.Module], AbstractContextManager[None]]
Made = tuple[nn.Module, Any]


def block(into: int, out: int, stride: int = 1, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(into, out, 3, stride, 1, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


def vgg() -> Made:
    return nn.Sequential(
        nn.Conv2d(3, 11, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(11, 13, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(),
        nn.Linear(78, 19),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(19, 7),
    ), torch.randn(2, 3, 14, 12)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 12, 2)
        self.first = nn.Sequential(block(12, 12), nn.Conv2d(12, 12, 3, padding=1))
        self.second = nn.Sequential(block(12, 20, 2), nn.Conv2d(20, 20, 3, padding=1))
        self.shortcut = nn.Conv2d(12, 20, 1, 2)
        self.head = nn.Linear(20, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = (x + self.first(x)).relu()
        x = (self.shortcut(x) + self.second(x)).relu()
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, 10), block(10, 14, 2), block(14, 18, 2)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(18, 14, 2, 2), nn.ConvTranspose2d(14, 10, 2, 2)]
        )
        self.fuse = nn.ModuleList([block(28, 14), block(20, 10)])
        self.head = nn.Conv2d(10, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        skips.pop()
        for up, fuse in zip(self.up, self.fuse, strict=True):
            x = fuse(torch.cat([up(x), skips.pop()], 1))
        return self.head(x)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList([block(8 + 6 * i, 6) for i in range(4)])
        self.head = nn.Linear(32, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(torch.cat(features, 1).mean((2, 3)))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(
            {
                "one": nn.Conv2d(7, 5, 1),
                "three": nn.Sequential(nn.Conv2d(7, 6, 1), nn.Conv2d(6, 9, (3, 1), padding=(1, 0))),
                "five": nn.Conv2d(7, 8, (1, 5), padding="same"),
                "pool": nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(7, 4, 1)),
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches.values()], 1)


def mobilenet() -> Made:
    return nn.Sequential(
        block(3, 14, 2),
        block(14, 14, groups=14),
        nn.Conv2d(14, 22, 1),
        nn.ReLU6(),
        block(22, 22, 2, groups=22),
        nn.Conv2d(22, 10, 1),
        nn.Flatten(),
    ), torch.randn(2, 3, 14, 12)


def resnext() -> Made:
    return nn.Sequential(
        block(3, 15), block(15, 18, groups=3), block(18, 24, 2, groups=2)
    ), torch.randn(2, 3, 9, 8)


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates, residuals and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 10, 1)
        self.filters = nn.ModuleList([nn.Conv1d(10, 10, 2, dilation=2**i) for i in range(4)])
        self.gates = nn.ModuleList([nn.Conv1d(10, 10, 2, dilation=2**i) for i in range(4)])
        self.skips = nn.ModuleList([nn.Conv1d(10, 13, 1) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, total = self.stem(x), 0.0
        for i, (gate, skip) in enumerate(zip(self.gates, self.skips, strict=True)):
            padded = F.pad(x, (2**i, 0))
            x = x + self.filters[i](padded).tanh() * gate(padded).sigmoid()
            total = total + skip(x)
        return total


def volume() -> Made:
    return nn.Sequential(
        nn.Conv3d(2, 9, (3, 2, 3), padding=1),
        nn.BatchNorm3d(9),
        nn.ReLU(),
        nn.Conv3d(9, 11, 3, 2),
        nn.Flatten(),
        nn.LazyLinear(5),
    ), torch.randn(2, 2, 7, 6, 8)


def autoencoder() -> Made:
    return nn.Sequential(
        nn.Conv2d(3, 11, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(11, 13, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(13, 11, 3, 2, 1, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(11, 3, 4, 2, 1),
        nn.Sigmoid(),
    ), torch.randn(2, 3, 16, 12)


def generator() -> Made:
    return nn.Sequential(
        nn.ConvTranspose2d(20, 16, 4, 1, 0, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 12, 4, 2, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(12, 3, 3, padding=1, padding_mode="reflect"),
        nn.Tanh(),
    ), torch.randn(2, 20, 1, 1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 12, padding_idx=0)
        self.lstm = nn.LSTM(12, 14, batch_first=True, bidirectional=True)
        self.head = nn.Linear(28, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(ids))[0][:, -1])


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(block(3, 11, 2), nn.Flatten(), nn.LazyLinear(13))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(self.tower(a), self.tower(b))


class Mixer(nn.Module):
    """Linear layers on the last but one axis too."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 14, 4, 4)
        self.tokens = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.channels = nn.Sequential(nn.Linear(14, 22), nn.GELU(), nn.Linear(22, 14))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2)
        x = x + self.tokens(x)
        return x + self.channels(x.transpose(1, 2)).transpose(1, 2)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = block(3, 16)
        self.gate = nn.Sequential(nn.Conv2d(16, 6, 1), nn.ReLU(), nn.Conv2d(6, 16, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x * self.gate(x.mean((2, 3), keepdim=True))


def transformer() -> Made:
    model = nn.Transformer(12, 4, 1, 1, 20, batch_first=True)
    return model, (torch.randn(2, 5, 12), torch.randn(2, 3, 12))


IDS = {"input_ids": torch.tensor([[1, 5, 9, 3, 7], [2, 8, 4, 6, 1]])}
PAIR = {**IDS, "decoder_input_ids": torch.tensor([[1, 5, 3], [2, 8, 4]])}


def pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


TEXT = {
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 17,
}
LLM = {**TEXT, "num_key_value_heads": 1}
VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
}
SEQUENCE = {
    "vocab_size": 31,
    "d_model": 12,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def huggingface(model: str, config: str, inputs: Any, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        drawn = inputs() if callable(inputs) else inputs
        return getattr(hf, model)(getattr(hf, config)(**options)), drawn

    return make


def audio() -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(2, 400)}


MODELS: dict[str, Callable[[], Made]] = {
    "vgg": vgg,
    "resnet": lambda: (ResNet(), torch.randn(2, 3, 14, 12)),
    "unet": lambda: (UNet(), torch.randn(2, 3, 16, 12)),
    "densenet": lambda: (DenseNet(), torch.randn(2, 3, 9, 8)),
    "inception": lambda: (Inception(), torch.randn(2, 7, 9, 8)),
    "mobilenet": mobilenet,
    "resnext": resnext,
    "wavenet": lambda: (WaveNet(), torch.randn(2, 3, 19)),
    "3-d": volume,
    "autoencoder": autoencoder,
    "generator": generator,
    "lstm": lambda: (Recurrent(), torch.randint(0, 31, (2, 6))),
    "siamese": lambda: (Siamese(), (torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8))),
    "mixer": lambda: (Mixer(), torch.randn(2, 3, 16, 12)),
    "squeeze-excite": lambda: (SqueezeExcite(), torch.randn(2, 3, 9, 8)),
    "nn.Transformer": transformer,
    "bert": huggingface("BertModel", "BertConfig", IDS, **TEXT),
    "bert mlm": huggingface("BertForMaskedLM", "BertConfig", IDS, **TEXT),
    "roberta": huggingface("RobertaModel", "RobertaConfig", IDS, **TEXT),
    "albert": huggingface("AlbertModel", "AlbertConfig", IDS, embedding_size=8, **TEXT),
    "electra": huggingface("ElectraModel", "ElectraConfig", IDS, embedding_size=8, **TEXT),
    "deberta": huggingface("DebertaV2Model", "DebertaV2Config", IDS, **TEXT),
    "mpnet": huggingface("MPNetModel", "MPNetConfig", IDS, **TEXT),
    "distilbert": huggingface(
        "DistilBertModel",
        "DistilBertConfig",
        IDS,
        vocab_size=31,
        dim=12,
        n_layers=2,
        n_heads=2,
        hidden_dim=20,
        max_position_embeddings=17,
    ),
    "gpt2": huggingface(
        "GPT2LMHeadModel",
        "GPT2Config",
        IDS,
        vocab_size=31,
        n_embd=12,
        n_layer=2,
        n_head=2,
        n_positions=17,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": huggingface(
        "OPTForCausalLM",
        "OPTConfig",
        IDS,
        vocab_size=31,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=20,
        max_position_embeddings=17,
        word_embed_proj_dim=12,
    ),
    "gpt-neox": huggingface("GPTNeoXForCausalLM", "GPTNeoXConfig", IDS, **TEXT),
    "bloom": huggingface(
        "BloomForCausalLM", "BloomConfig", IDS, vocab_size=31, hidden_size=12, n_layer=1, n_head=2
    ),
    "llama": huggingface("LlamaForCausalLM", "LlamaConfig", IDS, **LLM),
    "mistral": huggingface("MistralForCausalLM", "MistralConfig", IDS, **LLM),
    "qwen": huggingface("Qwen2ForCausalLM", "Qwen2Config", IDS, **LLM),
    "gemma": huggingface("GemmaForCausalLM", "GemmaConfig", IDS, head_dim=6, **LLM),
    "mixtral": huggingface("MixtralForCausalLM", "MixtralConfig", IDS, num_local_experts=2, **LLM),
    "mamba": huggingface(
        "MambaForCausalLM",
        "MambaConfig",
        IDS,
        vocab_size=31,
        hidden_size=12,
        num_hidden_layers=1,
        state_size=4,
    ),
    "t5": huggingface(
        "T5ForConditionalGeneration",
        "T5Config",
        PAIR,
        vocab_size=31,
        d_model=12,
        d_kv=6,
        d_ff=20,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    ),
    "bart": huggingface("BartForConditionalGeneration", "BartConfig", PAIR, **SEQUENCE),
    "marian": huggingface("MarianMTModel", "MarianConfig", PAIR, **SEQUENCE),
    "whisper": lambda: (
        hf.WhisperModel(hf.WhisperConfig(**SEQUENCE, num_mel_bins=8, max_source_positions=10)),
        {
            "input_features": torch.randn(2, 8, 20),
            "decoder_input_ids": PAIR["decoder_input_ids"],
        },
    ),
    "wav2vec2": lambda: (
        hf.Wav2Vec2Model(
            hf.Wav2Vec2Config(
                **{k: v for k, v in TEXT.items() if k != "max_position_embeddings"},
                conv_dim=(10, 14),
                conv_kernel=(10, 3),
                conv_stride=(5, 2),
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
                num_feat_extract_layers=2,
            )
        ),
        audio(),
    ),
    "vit": huggingface("ViTModel", "ViTConfig", pixels, **VISION),
    "deit": huggingface("DeiTModel", "DeiTConfig", pixels, **VISION),
    "beit": huggingface("BeitModel", "BeitConfig", pixels, **VISION),
    "dinov2": huggingface("Dinov2Model", "Dinov2Config", pixels, mlp_ratio=2, **VISION),
    "swin": huggingface(
        "SwinModel",
        "SwinConfig",
        pixels,
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
    "convnext": huggingface(
        "ConvNextModel", "ConvNextConfig", pixels, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2
    ),
    "hf resnet": huggingface(
        "ResNetForImageClassification",
        "ResNetConfig",
        pixels,
        embedding_size=8,
        hidden_sizes=[12, 16],
        depths=[1, 1],
    ),
    "regnet": huggingface(
        "RegNetModel",
        "RegNetConfig",
        pixels,
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 24],
        depths=[1, 1, 1, 1],
        groups_width=4,
    ),
    "mobilenetv2": huggingface(
        "MobileNetV2Model",
        "MobileNetV2Config",
        pixels,
        depth_multiplier=0.25,
        depth_divisible_by=4,
        min_depth=4,
        expand_ratio=2,
        image_size=32,
    ),
    "efficientnet": huggingface(
        "EfficientNetModel",
        "EfficientNetConfig",
        pixels,
        image_size=32,
        width_coefficient=0.1,
        depth_coefficient=0.2,
        depth_divisor=4,
        hidden_dim=128,
    ),
    "segformer": huggingface(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        pixels,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 12],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=10,
    ),
    "upernet": lambda: (
        hf.UperNetForSemanticSegmentation(
            hf.UperNetConfig(
                backbone_config=hf.ConvNextConfig(
                    hidden_sizes=[6, 8, 10, 12],
                    depths=[1, 1, 1, 1],
                    out_features=["stage1", "stage2", "stage3", "stage4"],
                ),
                hidden_size=10,
                auxiliary_channels=9,
                use_auxiliary_head=True,
                num_labels=5,
            )
        ),
        {"pixel_values": torch.randn(2, 3, 64, 64)},
    ),
    "clip": lambda: (
        hf.CLIPModel(
            hf.CLIPConfig(
                text_config={**TEXT, "eos_token_id": 2}, vision_config=VISION, projection_dim=10
            )
        ),
        {**IDS, **pixels()},
    ),
    "sam": lambda: (
        hf.SamVisionModel(
            hf.SamVisionConfig(
                hidden_size=12,
                output_channels=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
                window_size=2,
                global_attn_indexes=[1],
                num_pos_feats=4,
                mlp_dim=20,
            )
        ),
        pixels(),
    ),
    "variational": lambda: (Variational(), torch.randn(2, 3, 16, 12)),
}


class Variational(nn.Module):
    """An encoder and a decoder called by methods of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 11, 3, 2, 1), nn.Flatten())
        self.mean = nn.Linear(528, 9)
        self.spread = nn.Linear(528, 9)
        self.decoder = nn.Linear(9, 19)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.encoder(x).relu()
        return self.mean(hidden), self.spread(hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, spread = self.encode(x)
        return self.decoder(mean) * spread.exp().sum(1, keepdim=True)


POLICIES = {"energy": rf.Energy(0.6), "ratio": rf.Ratio(0.25), "vbmf": rf.VBMF()}
IN_TURNS = dict(zip(MODELS, cycle(POLICIES), strict=False))  # ranks differ, not what is done


def run(model: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def tensors(output: Any) -> Iterator[torch.Tensor]:
    """Every float tensor in whatever a model gives."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from tensors(part)
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from tensors(part)


def made(name: str) -> Made:
    """A network in eval mode, with weights and BatchNorm statistics by which nothing dies away."""
    model, inputs = MODELS[name]()
    run(model.eval(), inputs)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            nn.init.ones_(module.weight)
    run(model.train(), inputs)
    return model.eval(), inputs


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    """All tests of a network run one after the other, on one network."""
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def network(name: str) -> Made:
    torch.manual_seed(0)
    return made(name)


@dataclass(frozen=True)
class Shrunk:
    """Parameters of a network, and what became of it under a policy."""

    before: int
    small: rf.Compressed
    inputs: Any


@pytest.fixture(scope="module")
def shrunk(name: str, network: Made) -> Shrunk:
    model, inputs = network
    small = rf.compress(model, POLICIES[IN_TURNS[name]], inputs=inputs)
    return Shrunk(sum(p.numel() for p in model.parameters()), small, inputs)


def test_full_rank_reproduces_the_network(
    network: Made, untouched: Untouched, distance: Callable[..., float]
) -> None:
    model, inputs = network
    expected = list(tensors(run(model, inputs)))
    assert all(y.norm() > 1e-3 for y in expected)
    convs = (module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd))
    by_cp = any(max(conv.kernel_size) > 1 for conv in convs)  # it does nothing else differently
    for methods in (None, ("svd", "cp3")) if by_cp else (None,):
        with untouched(model):
            small = rf.compress(model, rf.Ranks("full"), methods=methods)
        outputs = tensors(run(small.model, inputs))
        pairs = zip(outputs, expected, strict=True)
        assert max(distance(got, y) for got, y in pairs) < 1e-3


def test_a_policy_never_adds_parameters(shrunk: Shrunk, count: Callable[[nn.Module], int]) -> None:
    assert count(shrunk.small.model) <= shrunk.before


def test_the_planned_size_is_that_of_the_network(
    shrunk: Shrunk, count: Callable[[nn.Module], int]
) -> None:
    assert shrunk.small.plan.model_params == (
        shrunk.before,
        count(shrunk.small.model),
    )


def test_a_policy_never_adds_macs_but_to_look_ups(shrunk: Shrunk) -> None:
    plan = shrunk.small.plan
    assert plan.macs is not None
    assert plan.macs[1] <= plan.macs[0] + added(plan)


def test_the_compressed_network_runs(shrunk: Shrunk) -> None:
    outputs = tensors(run(shrunk.small.model, shrunk.inputs))
    assert all(y.isfinite().all() for y in outputs)


def added(plan: rf.Plan) -> int:
    """MACs where there were none: those of decomposed table look-ups."""
    return sum(x.macs[1] for x in plan.replaced if x.macs and x.macs[0] == 0)


def test_every_layer_of_the_network_left_alone_has_a_reason(shrunk: Shrunk) -> None:
    layers = shrunk.small.plan.layers
    assert [layer.path for layer in layers if layer.method is None and not layer.reason] == []


def test_the_network_is_planned_alike_with_and_without_inputs(network: Made) -> None:
    """What is seen while it runs forbids no more than what its source shows."""
    model, inputs = network
    full = rf.Ranks("full")
    without = [layer.path for layer in rf.plan(model, full).replaced]
    assert without, "it has no layer that can be replaced"
    assert [layer.path for layer in rf.plan(model, full, inputs=inputs).replaced] == without
