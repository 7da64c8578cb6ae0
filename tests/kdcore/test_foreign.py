"""torchvision's networks: views from outside, nothing left behind, weights under the names they have there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from kdcore import export
from kdcore.errors import TrainingError
from kdcore.models import Network, TorchvisionConfig
from kdcore.plan import make_plan
from kdcore.spec import SpecError, parse_spec
from kdcore.teacher import load_weights


def build(name: str, size: int = 32) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TorchvisionConfig(name=name).build((3, size, size), 5)


def shapes(network: Network, size: int = 32) -> dict[str, tuple[int, ...]]:
    return {name: tuple(view.shape) for name, view in network.eval().views(torch.rand(2, 3, size, size)).items()}


def test_views_have_the_names_of_the_parts() -> None:
    found = shapes(build("resnet18"))
    assert list(found)[:5] == ["conv1", "bn1", "relu", "maxpool", "layer1.0"]
    assert {"layer2": (2, 128, 4, 4), "pooled": (2, 512), "logits": (2, 5)}.items() <= found.items()
    assert list(found)[-2:] == ["pooled", "logits"]


def test_patches_and_windows_are_maps() -> None:
    assert shapes(build("vit_b_32", 64), 64)["encoder.layers.encoder_layer_0"] == (2, 768, 5, 1)
    swin = shapes(build("swin_t"))
    assert swin["features.0"] == swin["features.1"] == (2, 96, 8, 8)


def test_regnets_work_out_their_widths_on_the_meta_device_too() -> None:
    with torch.device("meta"):
        planned = TorchvisionConfig(name="regnet_y_400mf").build((3, 32, 32), 5)
        counted = torch.arange(3)
    assert counted.is_meta
    assert all(value.is_meta for value in planned.state_dict().values())
    network = build("regnet_y_400mf")
    assert shapes(network)["trunk_output.block3"] == (2, 208, 2, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = models.regnet_y_400mf(weights=None, num_classes=5).eval()
    pictures = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network.eval()(pictures), original(pictures))


def test_a_view_is_what_the_part_gave_though_the_next_one_writes_in_place() -> None:
    network = build("resnet18").eval()
    views = network.views(torch.rand(2, 3, 32, 32))
    assert views["bn1"].min() < 0
    torch.testing.assert_close(views["bn1"].relu(), views["relu"])
    assert "features" not in build("densenet121").eval().views(torch.rand(2, 3, 32, 32))  # rectified in place


def test_nothing_is_left_attached() -> None:
    network = build("resnet18")
    network.views(torch.rand(2, 3, 32, 32))
    with pytest.raises(RuntimeError):
        network.views(torch.rand(2, 4, 32, 32))
    for module in network.modules():
        assert not {**module._forward_hooks, **module._forward_pre_hooks}


def test_weights_have_torchvisions_names_in_files(tmp_path: Path) -> None:
    original = models.resnet18(weights=None, num_classes=5)
    save_file(original.state_dict(), tmp_path / "resnet18.safetensors")
    network = build("resnet18")
    network.load_state_dict(load_weights(tmp_path / "resnet18.safetensors", network))
    inputs = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network.eval()(inputs), original.eval()(inputs))
    export.save_weights(tmp_path / "student.safetensors", network.state_dict())
    assert load_file(tmp_path / "student.safetensors").keys() == original.state_dict().keys()
    save_file(models.resnet34(weights=None, num_classes=5).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(TrainingError, match=r"unexpected layer1\.2\.bn1"):
        load_weights(tmp_path / "other.safetensors", network)


def test_a_network_that_adds_nothing_last_has_no_bias_and_no_offset() -> None:
    """squeezenet takes a mean after its last convolution, and maxvit's last layer has no bias."""
    assert build("squeezenet1_1").classifier() is None
    assert build("squeezenet1_1").output_bias() is None
    assert build("resnet18").output_bias().shape == (5,)
    student = {"model": {"type": "torchvision", "name": "squeezenet1_1"}, "offset_classes": ["cat"]}
    with pytest.raises(SpecError) as caught:
        make_plan(
            parse_spec({"data": {"type": "cifar10"}, "teachers": [{"model": {"type": "vgg"}}], "student": student})
        )
    assert caught.value.errors[0][0] == ("student", "offset_classes")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inputs_are_turned_into_what_the_published_weights_want(name: str) -> None:
    """torchvision sets it with its weights; without it they would read other numbers than they were trained on."""
    assert build(name, size=96).network.transform_input
