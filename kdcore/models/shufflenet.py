"""ShuffleNet, both versions: cheap blocks between which the channels are shuffled."""

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, ModelError, Network, refuse_texts
from kdcore.models.layers import check_picture, conv1x1, conv3x3, pooled_classifier
from kdcore.models.resnet import initialise

STEM = 24
BLOCKS = (4, 8, 4)
GROUPS = 3
WIDTHS_1 = (240, 480, 960)
"""Of three groups, the width 1 (table 1 of version 1's paper)."""
WIDTHS_2 = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
"""Of the three stages and the last convolution (table 5 of version 2's paper)."""


class ShuffleNetConfig(BaseModelConfig):
    """Three stages of 4, 8 and 4 blocks; the first block of a stage halves the size.

    `version: 1`: 1x1 convolutions in three groups, 3x3 of each channel alone, a shortcut that is added (or, where the
    size is halved, set beside); `version: 2`: half of the channels pass unchanged. `form: imagenet` begins with
    a 3x3 convolution and a pooling that halve the size twice; `form: cifar` keeps it.
    Views: `stem`, `stage_1` to `stage_3` (version 1: also `stage_1_pre`, … before the last activation), `last` in
    version 2, `pooled`, `logits`.
    """

    title: ClassVar[str] = "ShuffleNet"
    source: ClassVar[str] = (
        "Zhang, Zhou, Lin, Sun: ShuffleNet, CVPR 2018, arXiv 1707.01083; Ma, Zhang, Zheng, Sun: ShuffleNet V2, ECCV"
        " 2018, arXiv 1807.11164; the forms for CIFAR: Tian, Krishnan, Isola, arXiv 1910.10699"
    )

    type: Literal["shufflenet"] = "shufflenet"
    version: Literal[1, 2] = 2
    """Of the paper."""
    form: Literal["cifar", "imagenet"] = "cifar"
    """For pictures of about 32 pixels a side, or of about 224."""
    width: float = Field(default=1.0, ge=0.5, le=2, multiple_of=0.5)
    """Multiple of the channels, roughly: 0.5, 1, 1.5 or 2; of version 2 only."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        refuse_texts(vocabulary, self.type)
        check_picture(input_shape, self.type, least=8 if self.form == "cifar" else 32)
        if self.version == 1 and self.width != 1:
            raise ModelError("width", "only version 2 has other widths than 1; leave it out")
        return ShuffleNet(self, input_shape[0], self.classes or classes)


class ShuffleNet(Network):
    def __init__(self, config: ShuffleNetConfig, channels: int, classes: int) -> None:
        super().__init__()
        large = config.form == "imagenet"
        first = conv3x3(channels, STEM, 2) if large else conv1x1(channels, STEM)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(STEM), nn.ReLU())
        self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        widths: tuple[int, ...] = WIDTHS_1 if config.version == 1 else WIDTHS_2[config.width][:3]
        before, stages = STEM, []
        for width, count in zip(widths, BLOCKS, strict=True):
            blocks: list[nn.Module] = []
            for place in range(count):
                blocks.append(
                    Grouped(before, width, active=not large)
                    if config.version == 1
                    else Split(before, width, halve=not place)
                )
                before = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.last: nn.Module | None = None
        if config.version == 2:
            last = WIDTHS_2[config.width][3]
            self.last = nn.Sequential(conv1x1(before, last), nn.BatchNorm2d(last), nn.ReLU())
            before = last
        self.head = nn.Linear(before, classes)
        initialise(self)

    def norm_before(self, layer: str) -> nn.BatchNorm2d | None:
        for number, stage in enumerate(self.stages, start=1):
            block = cast(nn.Sequential, stage)[-1]
            if isinstance(block, Grouped) and layer == f"stage_{number}_pre":
                return cast(nn.BatchNorm2d, block.spread[-1])
        return None

    def classifier(self) -> tuple[str, nn.Module]:
        return "pooled", self.head

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        views = {"stem": self.stem(inputs)}  # (B, C, H, W)
        features = self.pool(views["stem"])
        for number, stage in enumerate(self.stages, start=1):
            for block in cast(nn.Sequential, stage):
                before = block(features)
                features = before.relu() if isinstance(block, Grouped) else before
            if self.last is None:
                views[f"stage_{number}_pre"] = before
            views[f"stage_{number}"] = features
        if self.last is not None:
            views["last"] = features = self.last(features)
        return pooled_classifier(views, features, self.head)


class Grouped(nn.Module):
    """Version 1: 1x1 in groups, shuffle, 3x3 of each channel, 1x1 in groups, and the shortcut; before the activation.

    Where the width changes the size is halved, and the shortcut, pooled, is set beside and not added. `active`: an
    activation after the 3x3, as the form for CIFAR has it and the paper has not.
    """

    def __init__(self, inputs: int, outputs: int, *, active: bool) -> None:
        super().__init__()
        self.halves = inputs != outputs
        made = outputs - inputs if self.halves else outputs
        inside, groups = made // 4, 1 if inputs == STEM else GROUPS
        self.groups = groups
        self.squeeze = nn.Sequential(conv1x1(inputs, inside, groups=groups), nn.BatchNorm2d(inside), nn.ReLU())
        self.spread = nn.Sequential(
            conv3x3(inside, inside, 2 if self.halves else 1, groups=inside),
            nn.BatchNorm2d(inside),
            *([nn.ReLU()] if active else []),
            conv1x1(inside, made, groups=GROUPS),
            nn.BatchNorm2d(made),
        )

    def forward(self, features: Tensor) -> Tensor:
        main: Tensor = self.spread(shuffle(self.squeeze(features), self.groups))
        if not self.halves:
            return features + main
        return torch.cat([main, nn.functional.avg_pool2d(features, 3, stride=2, padding=1)], 1)


class Split(nn.Module):
    """Version 2: one half of the channels passes, the other is convolved; where the size is halved, both are."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool) -> None:
        super().__init__()
        half, stride = outputs // 2, 2 if halve else 1
        read = inputs if halve else half
        self.passing = None
        if halve:
            self.passing = nn.Sequential(
                conv3x3(inputs, inputs, 2, groups=inputs), nn.BatchNorm2d(inputs),
                conv1x1(inputs, half), nn.BatchNorm2d(half), nn.ReLU(),
            )  # fmt: skip
        self.main = nn.Sequential(
            conv1x1(read, half), nn.BatchNorm2d(half), nn.ReLU(),
            conv3x3(half, half, stride, groups=half), nn.BatchNorm2d(half),
            conv1x1(half, half), nn.BatchNorm2d(half), nn.ReLU(),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        if self.passing is not None:
            return shuffle(torch.cat([self.passing(features), self.main(features)], 1), 2)
        kept, changed = features.chunk(2, 1)
        return shuffle(torch.cat([kept, self.main(changed)], 1), 2)


def shuffle(features: Tensor, groups: int) -> Tensor:
    """(B, C, H, W): the first channel of each group, then the second of each, …"""
    batch, channels, height, width = features.shape
    grouped = features.reshape(batch, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(batch, channels, height, width)
