"""Model families: shapes, names, counts by hand, and what cannot be built."""

import math

import pytest
import torch
from torch import nn

from kdcore.models import CNNConfig, MLPConfig, ModelError


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_mlp_views_and_parameters() -> None:
    network = MLPConfig(hidden=[1200, 1200]).build((1, 28, 28), 10)
    views = network.eval().views(torch.zeros(2, 1, 28, 28))
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "hidden_1": (2, 1200),
        "hidden_2": (2, 1200),
        "logits": (2, 10),
    }
    assert list(views)[-1] == "logits"
    assert count(network) == 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10 == 2_395_210


def test_forward_is_the_logits() -> None:
    for config in (MLPConfig(), CNNConfig()):
        network = config.build((1, 8, 8), 4).eval()
        inputs = torch.randn(3, 1, 8, 8)
        torch.testing.assert_close(network(inputs), network.views(inputs)["logits"])


def test_mlp_by_hand() -> None:
    network = MLPConfig(hidden=[2]).build((2,), 2)
    with torch.no_grad():
        network.load_state_dict(
            {
                "hidden.0.weight": torch.tensor([[1.0, 1.0], [1.0, -1.0]]),
                "hidden.0.bias": torch.tensor([0.0, -1.0]),
                "head.weight": torch.tensor([[1.0, 0.0], [2.0, 5.0]]),
                "head.bias": torch.tensor([0.5, 0.0]),
            }
        )
    views = network.views(torch.tensor([[1.0, 2.0]]))
    assert views["hidden_1"].tolist() == [[3.0, 0.0]]  # 1 + 2; relu(1 - 2 - 1)
    assert views["logits"].tolist() == [[3.5, 6.0]]


def test_an_mlp_without_hidden_layers_is_softmax_regression() -> None:
    network = MLPConfig(hidden=[]).build((1, 8, 8), 10)
    assert list(network.views(torch.zeros(1, 1, 8, 8))) == ["logits"]
    assert count(network) == 650


def test_cnn_views_and_parameters() -> None:
    network = CNNConfig(channels=[64, 128], kernel_size=5, hidden=[1024]).build((1, 28, 28), 10)
    views = network.eval().views(torch.zeros(2, 1, 28, 28))
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "conv_1_pre": (2, 64, 28, 28),
        "conv_1": (2, 64, 14, 14),
        "conv_2_pre": (2, 128, 14, 14),
        "conv_2": (2, 128, 7, 7),
        "hidden_1": (2, 1024),
        "logits": (2, 10),
    }
    convolutions = 64 * 25 + 64 + 128 * 64 * 25 + 128
    assert count(network) == convolutions + 128 * 49 * 1024 + 1024 + 1024 * 10 + 10


def test_cnn_views_before_the_activation_and_what_made_them() -> None:
    config = CNNConfig(channels=[3, 4], hidden=[5], batch_norm=True, dropout=0.5)
    network = config.build((1, 8, 8), 3).eval()
    outputs: dict[str, torch.Tensor] = {}
    for name in ("conv_1_pre", "conv_2_pre"):
        norm = network.norm_before(name)
        assert norm is not None
        norm.register_forward_hook(lambda module, given, found, name=name: outputs.update({name: found}))
    views = network.views(torch.randn(4, 1, 8, 8))
    assert list(views) == ["conv_1_pre", "conv_1", "conv_2_pre", "conv_2", "hidden_1", "logits"]
    for name, found in outputs.items():
        assert torch.equal(found, views[name])
        assert torch.equal(nn.functional.max_pool2d(found.relu(), 2), views[name.removesuffix("_pre")])
    assert [network.norm_before(layer) for layer in ("conv_1", "hidden_1", "conv_9_pre")] == [None] * 3
    assert CNNConfig().build((1, 8, 8), 3).norm_before("conv_1_pre") is None


@pytest.mark.parametrize(
    ("config", "reads"),
    [
        (MLPConfig(hidden=[7, 5], dropout=0.5), "hidden_2"),
        (CNNConfig(channels=[2], hidden=[5], dropout=0.5), "hidden_1"),
        (CNNConfig(channels=[2, 3], hidden=[]), "conv_2"),
    ],
)
def test_the_classifier_makes_the_logits_from_a_view(config: MLPConfig | CNNConfig, reads: str) -> None:
    network = config.build((1, 8, 8), 3).eval()
    views = network.views(torch.randn(4, 1, 8, 8))
    found = network.classifier()
    assert found is not None
    layer, module = found
    assert layer == reads
    torch.testing.assert_close(module(views[layer]), views["logits"])


def test_softmax_regression_has_no_classifier_of_a_view() -> None:
    network = MLPConfig(hidden=[]).build((1, 8, 8), 3)
    assert network.classifier() is None
    assert network.norm_before("logits") is None


def test_cnn_rounds_odd_sizes_down_and_can_leave_pooling_out() -> None:
    assert CNNConfig(channels=[2, 2, 2, 2], hidden=[]).build((1, 28, 31), 3)(torch.zeros(2, 1, 28, 31)).shape == (2, 3)
    network = CNNConfig(channels=[2] * 8, hidden=[], pool="none").build((1, 5, 7), 3)
    assert network.views(torch.zeros(1, 1, 5, 7))["conv_8"].shape == (1, 2, 5, 7)


def test_cnn_options_are_used() -> None:
    def kinds(config: CNNConfig) -> list[str]:
        return [type(module).__name__ for module in config.build((1, 8, 8), 3).modules()]

    plain = kinds(CNNConfig())
    assert plain.count("MaxPool2d") == 2
    assert "BatchNorm2d" not in plain
    assert kinds(CNNConfig(pool="avg")).count("AvgPool2d") == 2
    assert kinds(CNNConfig(batch_norm=True)).count("BatchNorm2d") == 2
    assert "Tanh" in kinds(CNNConfig(activation="tanh"))
    bias = CNNConfig(batch_norm=True).build((1, 8, 8), 3).state_dict()
    assert "convolutions.0.0.bias" not in bias


@pytest.mark.parametrize("config", [MLPConfig(hidden=[64], dropout=0.5), CNNConfig(hidden=[64], dropout=0.5)])
def test_views_are_before_the_dropout(config: MLPConfig | CNNConfig) -> None:
    network = config.build((1, 8, 8), 3)
    inputs = torch.randn(4, 1, 8, 8)
    first, second = network.views(inputs), network.views(inputs)
    assert torch.equal(first["hidden_1"], second["hidden_1"])
    assert not torch.equal(first["logits"], second["logits"])
    network.eval()
    assert torch.equal(network(inputs), network(inputs))


def test_activations() -> None:
    for name, function in {"relu": torch.relu, "tanh": torch.tanh, "gelu": nn.functional.gelu}.items():
        network = MLPConfig(hidden=[5], activation=name).build((4,), 2)
        inputs = torch.randn(3, 4)
        expected = function(network.hidden[0](inputs))
        torch.testing.assert_close(network.views(inputs)["hidden_1"], expected)


def test_the_spec_may_set_the_classes() -> None:
    assert MLPConfig(classes=7).build((4,), 3)(torch.zeros(1, 4)).shape == (1, 7)


@pytest.mark.parametrize("side", [1, 2, 7, 8, 28, 32])
def test_pooling_goes_no_deeper_than_the_image(side: int) -> None:
    deepest = int(math.log2(side))
    if deepest:
        CNNConfig(channels=[1] * deepest).build((1, side, side), 2)(torch.zeros(1, 1, side, side))
    with pytest.raises(ModelError, match=f"shrink {side}x{side} below 1x1; use at most {deepest} conv") as caught:
        CNNConfig(channels=[1] * (deepest + 1)).build((1, side, side), 2)
    assert caught.value.field == "channels"


def test_a_cnn_reads_images() -> None:
    with pytest.raises(ModelError, match="reads images") as caught:
        CNNConfig().build((64,), 2)
    assert caught.value.field == "type"


def test_initialisation_comes_from_the_global_generator() -> None:
    for config in (MLPConfig(), CNNConfig()):
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(config.build((1, 8, 8), 3).state_dict()["head.weight"])
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])
