"""MobileNetV2: residual blocks that are narrow outside and wide, but cheap, inside."""

from typing import ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, Network, refuse_texts
from kdcore.models.dropout import Dropout
from kdcore.models.layers import check_picture, conv1x1, conv3x3, pooled_classifier
from kdcore.models.resnet import initialise

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Of each stage: expansion, channels, blocks, stride of the first block (table 2 of the paper)."""
LAST = 1280


class MobileNetV2Config(BaseModelConfig):
    """Inverted residual blocks: 1x1 to six times the channels, a 3x3 convolution of each channel alone, 1x1 back.

    `form: imagenet`: as published, 5 times halved. `form: cifar`: the second stage keeps the size, and every block
    begins with a 1x1 convolution, and activations have no upper bound; with `width: 0.5` the MobileNetV2 of the usual
    comparisons on CIFAR-100.
    Views: `stem`, `stage_1` to `stage_7` (without an activation, the blocks end linearly), `last`, `pooled`, `logits`.
    """

    title: ClassVar[str] = "MobileNetV2"
    source: ClassVar[str] = (
        "Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018,"
        " arXiv 1801.04381, table 2; the form for CIFAR: Tian, Krishnan, Isola, arXiv 1910.10699"
    )

    type: Literal["mobilenet_v2"] = "mobilenet_v2"
    form: Literal["cifar", "imagenet"] = "cifar"
    """For pictures of about 32 pixels a side, or of about 224."""
    width: float = Field(default=1.0, ge=0.1, le=4)
    """Multiple of the channels; the last convolution's 1280 grow with it and don't shrink."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Before the last layer; 0.2 as published."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        refuse_texts(vocabulary, self.type)
        check_picture(input_shape, self.type, least=16 if self.form == "cifar" else 32)
        return MobileNetV2(self, input_shape[0], self.classes or classes)

    def channels(self, count: int) -> int:
        """`count` times the width; of the imagenet form a multiple of 8, never below nine tenths of it."""
        exact = count * self.width
        if self.form == "cifar":
            return max(1, int(exact))
        rounded = max(8, int(exact + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * exact else rounded + 8


class MobileNetV2(Network):
    def __init__(self, config: MobileNetV2Config, channels: int, classes: int) -> None:
        super().__init__()
        small = config.form == "cifar"
        activation = nn.ReLU if small else nn.ReLU6
        before = config.channels(32)
        self.stem = nn.Sequential(conv3x3(channels, before, 2), nn.BatchNorm2d(before), activation())
        stages = []
        for number, (expansion, count, blocks, stride) in enumerate(STAGES):
            width, first = config.channels(count), 1 if small and number == 1 else stride
            layers = []
            for place in range(blocks):
                layers.append(Inverted(before, width, 1 if place else first, expansion, small=small))
                before = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        last = config.channels(LAST) if config.width > 1 else LAST
        self.last = nn.Sequential(conv1x1(before, last), nn.BatchNorm2d(last), activation())
        self.head = nn.Sequential(Dropout(config.dropout), nn.Linear(last, classes))
        initialise(self)

    def classifier(self) -> tuple[str, nn.Module]:
        return "pooled", self.head

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.stem(inputs)  # (B, C, H, W)
        views = {"stem": features}
        for number, stage in enumerate(self.stages, start=1):
            views[f"stage_{number}"] = features = cast(nn.Sequential, stage)(features)
        views["last"] = self.last(features)
        return pooled_classifier(views, views["last"], self.head)


class Inverted(nn.Module):
    """Expand, convolve each channel, project; added to what came in where the shape allows."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, *, small: bool) -> None:
        super().__init__()
        inside = inputs * expansion
        self.keeps = stride == 1 and inputs == outputs
        activation = nn.ReLU if small else nn.ReLU6
        widen = [conv1x1(inputs, inside), nn.BatchNorm2d(inside), activation()] if small or expansion > 1 else []
        self.main = nn.Sequential(
            *widen,
            conv3x3(inside, inside, stride, groups=inside),
            nn.BatchNorm2d(inside),
            activation(),
            conv1x1(inside, outputs),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        main: Tensor = self.main(features)
        return features + main if self.keeps else main
