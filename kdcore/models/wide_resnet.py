"""Wide residual networks: few layers, many channels, activation before each convolution."""

from typing import ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from kdcore.models.base import BaseModelConfig, ModelError, Network, refuse_texts
from kdcore.models.dropout import Dropout
from kdcore.models.layers import check_picture, conv1x1, conv3x3, pooled_classifier
from kdcore.models.resnet import initialise


class WideResNetConfig(BaseModelConfig):
    """Three stages of pre-activation blocks with 16, 32 and 64 channels times `width`; depth 6n + 4.

    WRN-40-2 of the literature is {depth: 40, width: 2}. Views: `stem`, then of each stage `stage_1_pre` and `stage_1`,
    before and after the rectifier with which the next one begins, …, `pooled`, `logits`.
    """

    title: ClassVar[str] = "Wide residual network"
    source: ClassVar[str] = "Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016, arXiv 1605.07146"

    type: Literal["wide_resnet"] = "wide_resnet"
    depth: int = Field(default=16, ge=10, le=1000)
    """Layers with weights: 10, 16, 22, 28, 40, …"""
    width: int = Field(default=1, ge=1, le=20)
    """Multiple of the channels."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Between the two convolutions of each block."""

    def build(self, input_shape: tuple[int, ...], classes: int, vocabulary: int | None = None) -> Network:
        refuse_texts(vocabulary, self.type)
        check_picture(input_shape, self.type, least=4)
        if (self.depth - 4) % 6:
            raise ModelError("depth", f"{self.depth} is not 6n + 4; the usual ones are 10, 16, 22, 28, 40")
        return WideResNet(self, input_shape[0], self.classes or classes)


class WideResNet(Network):
    def __init__(self, config: WideResNetConfig, channels: int, classes: int) -> None:
        super().__init__()
        count = (config.depth - 4) // 6
        self.stem = conv3x3(channels, 16)
        stages, before = [], 16
        for number, base in enumerate((16, 32, 64)):
            width = base * config.width
            blocks = [PreActivation(before, width, 2 if number else 1, config.dropout)]
            blocks += [PreActivation(width, width, 1, config.dropout) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            before = width
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm2d(before)
        self.head = nn.Linear(before, classes)
        initialise(self)

    def norm_before(self, layer: str) -> nn.BatchNorm2d | None:
        return dict(zip((f"stage_{number}_pre" for number in (1, 2, 3)), self.following(), strict=True)).get(layer)

    def following(self) -> list[nn.BatchNorm2d]:
        """The normalisation that follows each stage: the next one's first, and the last of all."""
        return [*(cast(PreActivation, cast(nn.Sequential, stage)[0]).norm1 for stage in self.stages[1:]), self.norm]

    def classifier(self) -> tuple[str, nn.Module]:
        return "pooled", self.head

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.stem(inputs)  # (B, 16, H, W)
        views, active = {"stem": features}, None
        for number, (stage, norm) in enumerate(zip(self.stages, self.following(), strict=True), start=1):
            for block in cast(nn.Sequential, stage):
                features, active = block(features, active), None
            views[f"stage_{number}_pre"] = norm(features)
            views[f"stage_{number}"] = active = views[f"stage_{number}_pre"].relu()
        return pooled_classifier(views, views["stage_3"], self.head)


class PreActivation(nn.Module):
    """Normalisation, rectifier, convolution, twice; the shortcut starts after the first rectifier where it changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs)
        self.dropout = Dropout(dropout)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else conv1x1(inputs, outputs, stride)

    def forward(self, features: Tensor, active: Tensor | None) -> Tensor:
        """(B, C, H, W) -> (B, outputs, …); `active`: the features normalised and rectified, where that is done."""
        if active is None:
            active = self.norm1(features).relu()
        main = self.conv2(self.dropout(self.norm2(self.conv1(active)).relu()))
        carried = features if self.shortcut is None else self.shortcut(active)
        added: Tensor = main + carried
        return added
