"""The families of networks: published sizes, named views, exports, and what each cannot read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcore import export
from kdcore.data import DataFacts
from kdcore.inputs import Classifier, Normalise, example_inputs
from kdcore.models import (
    MODELS,
    BaseModelConfig,
    GRUConfig,
    LSTMConfig,
    MobileNetV2Config,
    ModelError,
    ResNetConfig,
    ShuffleNetConfig,
    TextCNNConfig,
    TextTransformerConfig,
    TorchvisionConfig,
    VGGConfig,
    ViTConfig,
    WideResNetConfig,
)

PICTURE = DataFacts((3, 32, 32), ("a", "b", "c"), 9, 1, 2, (0.5,) * 3, (0.2,) * 3)
TEXT = DataFacts((12,), ("a", "b", "c"), 9, 1, 2, (0.0,), (1.0,), vocabulary=50)
SEQUENCE = DataFacts((12, 6), ("a", "b", "c"), 9, 1, 2, (0.1,) * 6, (0.2,) * 6)
ON_PICTURES = [
    ResNetConfig(depth=8),
    ResNetConfig(form="imagenet", depth=18),
    WideResNetConfig(depth=10, dropout=0.3),
    VGGConfig(depth=8),
    MobileNetV2Config(width=0.25, dropout=0.2),
    ShuffleNetConfig(version=1),
    ShuffleNetConfig(width=0.5),
    ViTConfig(width=16, layers=2, mlp=32, dropout=0.1),
    TorchvisionConfig(name="mobilenet_v3_small"),
]
ON_TEXTS = [
    LSTMConfig(hidden=8, layers=2, bidirectional=True),
    GRUConfig(hidden=8),
    TextCNNConfig(channels=4),
    TextTransformerConfig(width=16, layers=2, mlp=32),
]
CASES = [(config, PICTURE) for config in ON_PICTURES] + [(c, facts) for c in ON_TEXTS for facts in (TEXT, SEQUENCE)]


def build(config: BaseModelConfig, facts: DataFacts) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config.build(facts.input_shape, len(facts.classes), facts.vocabulary).eval()


@pytest.mark.parametrize(
    ("config", "shape", "classes", "published"),
    [
        # Tian, Krishnan, Isola, arXiv 1910.10699, and their code: CIFAR-100
        (ResNetConfig(depth=20), (3, 32, 32), 100, 278_324),
        (ResNetConfig(depth=32), (3, 32, 32), 100, 472_756),
        (ResNetConfig(depth=56), (3, 32, 32), 100, 861_620),
        (ResNetConfig(depth=110), (3, 32, 32), 100, 1_736_564),
        (ResNetConfig(depth=8, width=4), (3, 32, 32), 100, 1_233_540),
        (ResNetConfig(depth=32, width=4), (3, 32, 32), 100, 7_433_860),
        (WideResNetConfig(depth=40, width=2), (3, 32, 32), 100, 2_255_156),
        (WideResNetConfig(depth=16, width=2), (3, 32, 32), 100, 703_284),
        (WideResNetConfig(depth=40, width=1), (3, 32, 32), 100, 569_780),
        (VGGConfig(depth=8), (3, 32, 32), 100, 3_965_028),
        (VGGConfig(depth=13), (3, 32, 32), 100, 9_462_180),
        (MobileNetV2Config(width=0.5), (3, 32, 32), 100, 812_836),
        (ShuffleNetConfig(version=1), (3, 32, 32), 100, 949_258),
        (ShuffleNetConfig(), (3, 32, 32), 100, 1_355_528),
        # torchvision's tables: ImageNet
        (MobileNetV2Config(form="imagenet"), (3, 224, 224), 1000, 3_504_872),
        (ShuffleNetConfig(form="imagenet", width=0.5), (3, 224, 224), 1000, 1_366_792),
        (ShuffleNetConfig(form="imagenet"), (3, 224, 224), 1000, 2_278_604),
        (ShuffleNetConfig(form="imagenet", width=2.0), (3, 224, 224), 1000, 7_393_996),
        (TorchvisionConfig(name="vgg16_bn"), (3, 224, 224), 1000, 138_365_992),
        (TorchvisionConfig(name="efficientnet_b0"), (3, 224, 224), 1000, 5_288_548),
        (TorchvisionConfig(name="regnet_x_400mf"), (3, 224, 224), 1000, 5_495_976),
        (TorchvisionConfig(name="regnet_y_128gf"), (3, 384, 384), 1000, 644_812_894),
        (ResNetConfig(form="imagenet", depth=18), (3, 224, 224), 1000, 11_689_512),
        (ResNetConfig(form="imagenet", depth=34), (3, 224, 224), 1000, 21_797_672),
        (ResNetConfig(form="imagenet", depth=50), (3, 224, 224), 1000, 25_557_032),
        (ResNetConfig(form="imagenet", depth=101), (3, 224, 224), 1000, 44_549_160),
        (ViTConfig(patch=16, width=768, layers=12, heads=12, mlp=3072), (3, 224, 224), 1000, 86_567_656),
    ],
)
def test_published_sizes(config: BaseModelConfig, shape: tuple[int, ...], classes: int, published: int) -> None:
    with torch.device("meta"):
        network = config.build(shape, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == published


@pytest.mark.parametrize(("config", "facts"), CASES, ids=lambda each: getattr(each, "type", None))
def test_views_are_named_in_order_and_end_in_the_logits(config: BaseModelConfig, facts: DataFacts) -> None:
    network = build(config, facts)
    inputs = example_inputs(facts, 4, torch.Generator().manual_seed(0))
    views = network.views(inputs)
    assert list(views)[-2:] == ["pooled", "logits"]
    assert views["logits"].shape == (4, 3)
    assert torch.equal(network(inputs), views["logits"])
    assert all(view.ndim in (2, 4) and len(view) == 4 for view in views.values())
    name, head = network.classifier()
    torch.testing.assert_close(head(views[name]), views["logits"])
    assert network.output_bias().shape == (3,)
    for layer in [name for name in views if name.endswith("_pre")]:
        norm = network.norm_before(layer)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.num_features == views[layer].shape[1]
        torch.testing.assert_close(views[layer].relu(), views[layer.removesuffix("_pre")])


@pytest.mark.parametrize(("config", "facts"), CASES, ids=lambda each: getattr(each, "type", None))
def test_every_sample_is_read_alone(config: BaseModelConfig, facts: DataFacts) -> None:
    network = build(config, facts)
    inputs = example_inputs(facts, 5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(inputs)[2:3], network(inputs[2:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", ON_TEXTS, ids=lambda config: config.type)
def test_padding_of_another_length_changes_little_or_nothing(config: BaseModelConfig) -> None:
    """The mean and the attention leave it out; convolutions and the backward direction see where a text ends."""
    network = build(config, TEXT)
    tokens = torch.zeros(1, 12, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([5, 9, 2, 7])
    other = tokens.clone()
    other[0, 4] = 11
    with torch.no_grad():
        assert (network(tokens) - network(other)).abs().max() > 1e-6
        embedded = network.embedding(tokens)
    assert embedded[0, 4:].abs().max() == 0


def test_attention_does_not_look_at_padding() -> None:
    network = build(TextTransformerConfig(width=16, layers=2, mlp=32), TEXT)
    tokens = torch.zeros(1, 12, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([5, 9, 2, 7])
    with torch.no_grad():
        before = network(tokens)
        network.places[4:] += 3.0
        torch.testing.assert_close(network(tokens), before)


@pytest.mark.parametrize(("config", "facts"), CASES, ids=lambda each: getattr(each, "type", None))
def test_exports_agree(config: BaseModelConfig, facts: DataFacts, tmp_path: Path) -> None:
    classifier = Classifier(Normalise(facts), build(config, facts)).eval()
    program = export.trace(classifier, facts)
    export.save_onnx(program, tmp_path / "m.onnx")
    export.check(classifier, program, tmp_path / "m.onnx", facts)


@pytest.mark.parametrize(("config", "facts"), CASES, ids=lambda each: getattr(each, "type", None))
def test_every_parameter_gets_a_gradient(config: BaseModelConfig, facts: DataFacts) -> None:
    network = build(config, facts).train()
    outputs: Tensor = network(example_inputs(facts, 4, torch.Generator().manual_seed(0)))
    outputs.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("config", "facts", "field"),
    [
        (ResNetConfig(), TEXT, "type"),
        (ResNetConfig(), SEQUENCE, "type"),
        (ResNetConfig(depth=21), PICTURE, "depth"),
        (ResNetConfig(form="imagenet", depth=20), PICTURE, "depth"),
        (ResNetConfig(form="imagenet", depth=18, width=2), PICTURE, "width"),
        (WideResNetConfig(depth=18), PICTURE, "depth"),
        (WideResNetConfig(), TEXT, "type"),
        (VGGConfig(), TEXT, "type"),
        (MobileNetV2Config(), SEQUENCE, "type"),
        (MobileNetV2Config(form="imagenet"), replace(PICTURE, input_shape=(3, 24, 24)), "type"),
        (ShuffleNetConfig(version=1, width=2.0), PICTURE, "width"),
        (TorchvisionConfig(name="resnet19"), PICTURE, "name"),
        (TorchvisionConfig(name="inception_v3"), PICTURE, "name"),
        (TorchvisionConfig(name="vit_b_16"), replace(PICTURE, input_shape=(3, 32, 48)), "name"),
        (TorchvisionConfig(), replace(PICTURE, input_shape=(1, 32, 32)), "type"),
        (TorchvisionConfig(), TEXT, "type"),
        (ViTConfig(patch=5), PICTURE, "patch"),
        (ViTConfig(width=130), PICTURE, "heads"),
        (ViTConfig(), TEXT, "type"),
        (LSTMConfig(), PICTURE, "type"),
        (GRUConfig(), PICTURE, "type"),
        (TextCNNConfig(), PICTURE, "type"),
        (TextTransformerConfig(width=10), TEXT, "heads"),
        (TextTransformerConfig(), PICTURE, "type"),
    ],
)
def test_what_cannot_be_built_names_its_field(config: BaseModelConfig, facts: DataFacts, field: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(config, facts)
    assert caught.value.field == field


def test_every_family_is_tried() -> None:
    others = {"mlp", "cnn", "sequential", "timm", "onnx", "logits", "http"}  # in files of their own
    assert {config.type for config, _ in CASES} | others == {model.model_fields["type"].default for model in MODELS}
