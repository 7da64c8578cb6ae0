"""Residual networks: the form for small pictures (CIFAR) and the one for large ones (ImageNet)."""

from typing import ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, ModelError, Network, refuse_texts
from kdcore.models.layers import check_picture, conv1x1, conv3x3, pooled_classifier

SMALL = (8, 14, 20, 26, 32, 38, 44, 56, 110)
LARGE: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


class ResNetConfig(BaseModelConfig):
    """Residual blocks of two 3x3 convolutions, or three with a bottleneck, with batch normalisation.

    `form: cifar`: a 3x3 stem and three stages of 16, 32 and 64 channels times `width`, with depth 6n + 2; the names of
    the literature are resnet20 = {depth: 20}, resnet8x4 = {depth: 8, width: 4}, whose stem is twice as wide, too.
    `form: imagenet`: a 7x7 stem with stride 2, pooling, and four stages; depth 18, 34, 50, 101 or 152.
    Views: `stem`, then of each stage `stage_1_pre` (before its last activation) and `stage_1`, …, `pooled`, `logits`.
    """

    title: ClassVar[str] = "Residual network"
    source: ClassVar[str] = (
        "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385, sections 3 and"
        " 4.2; 8x4 and 32x4: Tian, Krishnan, Isola, arXiv 1910.10699"
    )

    type: Literal["resnet"] = "resnet"
    form: Literal["cifar", "imagenet"] = "cifar"
    """For pictures of about 32 pixels a side, or of about 224."""
    depth: int = Field(default=20, ge=8, le=1202)
    """Layers with weights, shortcuts not counted."""
    width: int = Field(default=1, ge=1, le=16)
    """Multiple of the channels of every stage; of the cifar form only."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        refuse_texts(vocabulary, self.type)
        check_picture(input_shape, self.type, least=4 if self.form == "cifar" else 32)
        if self.form == "imagenet":
            if self.depth not in LARGE:
                usual = ", ".join(map(str, LARGE))
                raise ModelError("depth", f"{self.depth} is none of the imagenet form's; use {usual}")
            if self.width != 1:
                raise ModelError("width", "only the cifar form is made wider; leave it out")
            kind, counts = LARGE[self.depth]
            return ResNet(input_shape[0], self.classes or classes, kind, counts, (64, 128, 256, 512), 64, large=True)
        if (self.depth - 2) % 6:
            raise ModelError("depth", f"{self.depth} is not 6n + 2; the usual ones are {', '.join(map(str, SMALL))}")
        count = (self.depth - 2) // 6
        widths = tuple(self.width * channels for channels in (16, 32, 64))
        if self.width == 4:  # resnet8x4 and 32x4 of the comparisons: 32-64-128-256
            return ResNet(input_shape[0], self.classes or classes, "basic", (count,) * 3, widths, 32, large=False)
        return ResNet(input_shape[0], self.classes or classes, "basic", (count,) * 3, widths, 16, large=False)


class ResNet(Network):
    def __init__(
        self,
        channels: int,
        classes: int,
        kind: str,
        counts: tuple[int, ...],
        widths: tuple[int, ...],
        stem: int,
        *,
        large: bool,
    ) -> None:
        super().__init__()
        if large:
            first = nn.Conv2d(channels, stem, 7, stride=2, padding=3, bias=False)
            self.stem = nn.Sequential(first, nn.BatchNorm2d(stem), nn.ReLU())
            self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.stem = nn.Sequential(conv3x3(channels, stem), nn.BatchNorm2d(stem), nn.ReLU())
            self.pool = nn.Identity()
        block = Bottleneck if kind == "bottleneck" else Basic
        stages, before = [], stem
        for number, (count, width) in enumerate(zip(counts, widths, strict=True)):
            blocks = []
            for place in range(count):
                blocks.append(block(before, width, stride=2 if number and not place else 1))
                before = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(before, classes)
        initialise(self)

    def norm_before(self, layer: str) -> nn.BatchNorm2d | None:
        for number, stage in enumerate(self.stages, start=1):
            if layer == f"stage_{number}_pre":
                main = cast(nn.Sequential, cast(nn.Sequential, stage)[-1].main)
                return cast(nn.BatchNorm2d, main[-1])
        return None

    def classifier(self) -> tuple[str, nn.Module]:
        return "pooled", self.head

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        views = {"stem": self.stem(inputs)}  # (B, C, H, W)
        features = self.pool(views["stem"])
        for number, stage in enumerate(self.stages, start=1):
            for block in cast(nn.Sequential, stage):
                before = block(features)
                features = before.relu()
            views[f"stage_{number}_pre"], views[f"stage_{number}"] = before, features
        return pooled_classifier(views, features, self.head)


class Basic(nn.Module):
    """Two 3x3 convolutions and the shortcut; what is added, before the activation."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            conv3x3(inputs, width, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv3x3(width, width),
            nn.BatchNorm2d(width),
        )
        self.shortcut = shortcut(inputs, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = self.main(features) + self.shortcut(features)
        return added


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width, and the shortcut; before the activation."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.main = nn.Sequential(
            conv1x1(inputs, width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv3x3(width, width, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv1x1(width, outputs),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = shortcut(inputs, outputs, stride)

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = self.main(features) + self.shortcut(features)
        return added


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """What carries the features past a block: themselves, or a 1x1 convolution where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


def initialise(network: nn.Module) -> None:
    """Convolutions as He et al. 2015 (arXiv 1502.01852) have them for rectifiers, by their outputs."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
