"""Softmax regression representation learning: the teacher's classifier must read the student's features well."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, check_same_shape, full_precision
from kdcore.losses.classifier import ClassifierLossConfig, Reused
from kdcore.losses.connector import as_map, connector


def srrl(student_feature: Tensor, teacher_feature: Tensor, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """MSE of the features plus MSE of the logits that the teacher's classifier makes from them (Yang et al. 2021).

    Args:
        student_feature, teacher_feature: (B, …), the student's after its regressor.
        student_logits, teacher_logits: (B, C), from these features; no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision values.

    Raises:
        ValueError: the shapes of student and teacher differ.
    """
    check_same_shape(student_feature, teacher_feature)
    check_same_shape(student_logits, teacher_logits)
    features = F.mse_loss(full_precision(student_feature), full_precision(teacher_feature.detach()))
    return features + F.mse_loss(full_precision(student_logits), full_precision(teacher_logits.detach()))


class SRRLConfig(ClassifierLossConfig):
    """Squared differences to the teacher's last features, and to its logits when its classifier reads the student's.

    A 1x1 convolution with batch normalisation, which trains with the student, takes the student's features to the
    teacher's width; the paper ends it in a ReLU, which is left out, since a teacher's features may be negative.
    """

    title: ClassVar[str] = "Teacher's classifier on student's features"
    source: ClassVar[str] = (
        "Yang, Martinez, Bulat, Tzimiropoulos: Knowledge Distillation via Softmax Regression Representation Learning,"
        " ICLR 2021, section 3"
    )

    type: Literal["srrl"] = "srrl"

    def build(self, context: Context) -> Term:
        reused = self.reused(context)
        return SRRL(self, self.read_layer(context, reused), reused, context)


class SRRL(Term):
    def __init__(self, config: SRRLConfig, layer: str, reused: Reused, context: Context) -> None:
        super().__init__()
        self.config, self.layers, self.reused = config, [(layer, reused.layer)], reused
        self.connector = connector(context.student[layer][0], reused.shape[0])

    def forward(self, batch: Batch) -> Tensor:
        ((ours, theirs),) = self.layers
        taught = self.config.taught(batch)
        pooled = self.reused.shaped(batch.student[ours])
        feature = self.connector(as_map(pooled)).reshape(taught[theirs].shape)
        return srrl(feature, taught[theirs], self.reused.module(feature), taught["logits"])
