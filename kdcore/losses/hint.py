"""Hints: a hidden layer of the student fits a hidden output of the teacher."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, Term, check_same_shape, full_precision
from kdcore.losses.pairing import LayerLossConfig
from kdcore.losses.pooling import pooled_alike
from kdcore.losses.regressor import regressor


def hint(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Mean over all entries of (f_s - f_t)² (Romero et al. 2015, equation 3, without their ½).

    Args:
        student_feature, teacher_feature: (B, C, H, W), the larger map pooled to the smaller size first, or (B, D);
            no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision features.

    Raises:
        ValueError: other than in size the shapes differ.
    """
    student, teacher = pooled_alike(full_precision(student_feature), full_precision(teacher_feature.detach()))
    check_same_shape(student, teacher)
    return F.mse_loss(student, teacher)


class HintConfig(LayerLossConfig):
    """Mean squared difference between a hidden output of the student and one of the teacher, the hint.

    Where their shapes differ, a regressor lies between, which trains with the student: a linear map for vectors;
    for maps a 1x1 or a strided 3x3 convolution, batch normalisation, ReLU. Left out, the layers are those in the
    middle of the pairs that fit. FitNets trains on the hint first and distils in a second stage.
    """

    title: ClassVar[str] = "Hint of a hidden layer"
    source: ClassVar[str] = "Romero et al.: FitNets, ICLR 2015, arXiv 1412.6550, section 2.2"

    type: Literal["hint"] = "hint"
    weight: float = Field(default=100.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""
    relu: bool | None = None
    """Whether a ReLU ends the regressor of maps; left out: unless the teacher's layer is one before its activation.
    `false` is right for a teacher whose maps have negative values, as after GELU."""

    def build(self, context: Context) -> Term:
        pair = self.pair(context, "any", depth=0.5)
        return Hint(self, pair, regressor(context.student, self.shapes_of_teacher(context), pair, self.relu))


class Hint(Term):
    def __init__(self, config: HintConfig, pair: tuple[str, str], bridge: nn.Module) -> None:
        super().__init__()
        self.config, self.layers, self.regressor = config, [pair], bridge

    def forward(self, batch: Batch) -> Tensor:
        ((ours, theirs),) = self.layers
        return hint(self.regressor(batch.student[ours]), self.config.taught(batch)[theirs])
