"""Plain stacks of 3x3 convolutions."""

from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, Network, refuse_texts
from kdcore.models.layers import check_picture, pooled_classifier
from kdcore.models.resnet import initialise

STAGES: dict[int, tuple[int, int, int, int, int]] = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions of each stage; the original's three wide Linear layers are one here."""
CHANNELS = (64, 128, 256, 512, 512)
LARGE_PICTURE = 64


class VGGConfig(BaseModelConfig):
    """Five stages of 3x3 convolutions with batch normalisation, 64 to 512 channels, the mean, and one Linear layer.

    The form for small pictures: the size is halved before the second, third and fourth stage, before the fifth only
    where pictures have 64 pixels a side or more. The original for ImageNet, whose three Linear layers hold most of its
    138 million parameters, is {type: torchvision, name: vgg16_bn}.
    Views: of each stage `stage_1_pre` (before its last activation) and `stage_1`, …, `pooled`, `logits`.
    """

    title: ClassVar[str] = "VGG network"
    source: ClassVar[str] = (
        "Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,"
        " arXiv 1409.1556; with one Linear layer: Tian, Krishnan, Isola, arXiv 1910.10699"
    )

    type: Literal["vgg"] = "vgg"
    depth: Literal[8, 11, 13, 16, 19] = 13
    """Layers with weights of the network it is named after; 8 has one convolution a stage."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        refuse_texts(vocabulary, self.type)
        check_picture(input_shape, self.type, least=8)
        return VGG(input_shape, self.classes or classes, STAGES[self.depth])


class VGG(Network):
    def __init__(self, input_shape: tuple[int, ...], classes: int, counts: tuple[int, ...]) -> None:
        super().__init__()
        before, stages = input_shape[0], []
        for width, count in zip(CHANNELS, counts, strict=True):
            layers: list[nn.Module] = []
            for place in range(count):
                layers += [nn.ReLU()] if place else []
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width)]
                before = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(before, classes)
        self.halved = (1, 2, 3, 4) if min(input_shape[1:]) >= LARGE_PICTURE else (1, 2, 3)
        initialise(self)

    def norm_before(self, layer: str) -> nn.BatchNorm2d | None:
        norms = {f"stage_{number}_pre": stage for number, stage in enumerate(self.stages, start=1)}
        return cast(nn.BatchNorm2d, cast(nn.Sequential, norms[layer])[-1]) if layer in norms else None

    def classifier(self) -> tuple[str, nn.Module]:
        return "pooled", self.head

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        views, features = {}, inputs  # (B, C, H, W)
        for place, stage in enumerate(self.stages):
            if place in self.halved:
                features = nn.functional.max_pool2d(features, 2)
            before = stage(features)
            features = before.relu()
            views[f"stage_{place + 1}_pre"], views[f"stage_{place + 1}"] = before, features
        return pooled_classifier(views, features, self.head)
