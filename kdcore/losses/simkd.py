"""SimKD: the student's features become the teacher's, so that the teacher's classifier can read them."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor

from kdcore.losses.base import Batch, Context, Term, check_same_shape, full_precision
from kdcore.losses.classifier import ClassifierLossConfig, Reused
from kdcore.losses.connector import as_map, projector


def simkd(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """MSE between the student's projected features and the teacher's (Chen et al. 2022, equation 3).

    Args:
        student_feature, teacher_feature: (B, …), of one shape; no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision features.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student_feature, teacher_feature)
    return F.mse_loss(full_precision(student_feature), full_precision(teacher_feature.detach()))


class SimKDConfig(ClassifierLossConfig):
    """Squared difference between the student's features after a projector and what the teacher's classifier reads.

    The projector is three convolutions with batch normalisation, which train with the student; the paper ends it in a
    ReLU, which is left out, since a teacher's features may be negative. The paper's student is projector and
    teacher's classifier together. That is not what is exported here: the exported student is the student's own model,
    whose last layer this loss does not train, so that a term on its logits belongs beside it. How well the paper's
    student does on each batch is reported in training where the task is classification: the `agreement` of the
    teacher's classifier on the projected features with the teacher and, where all samples have labels, its `accuracy`.
    """

    title: ClassVar[str] = "Features for the teacher's classifier"
    source: ClassVar[str] = (
        "Chen, Mei, Zhang, Wang, Feng, Chen: Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022,"
        " arXiv 2203.14001"
    )

    type: Literal["simkd"] = "simkd"
    factor: int = Field(default=2, ge=1, le=64)
    """The projector's inner width is the teacher's divided by this."""

    def build(self, context: Context) -> Term:
        reused = self.reused(context)
        return SimKD(self, self.read_layer(context, reused), reused, context)


class SimKD(Term):
    def __init__(self, config: SimKDConfig, layer: str, reused: Reused, context: Context) -> None:
        super().__init__()
        self.config, self.layers, self.reused = config, [(layer, reused.layer)], reused
        self.classifies, self.labelled = context.task == "classification", not context.partly_labelled
        self.seen: dict[str, Tensor] = {}
        shape, width = context.student[layer], reused.shape[0]
        self.projector = projector(shape[0], max(1, width // config.factor), width, kernel=3 if len(shape) == 3 else 1)

    def forward(self, batch: Batch) -> Tensor:
        ((ours, theirs),) = self.layers
        taught = self.config.taught(batch)
        feature = self.reused.shaped(self.projector(as_map(batch.student[ours])))
        feature = feature.reshape(taught[theirs].shape)
        if self.classifies:
            self._watch(feature, taught["logits"], batch.labels)
        return simkd(feature, taught[theirs])

    @torch.no_grad()
    def _watch(self, feature: Tensor, teacher_logits: Tensor, labels: Tensor | None) -> None:
        classes = self.reused.module(feature).argmax(dim=1)
        self.seen = {"agreement": (classes == teacher_logits.argmax(dim=1)).float().mean()}
        if labels is not None and self.labelled:
            self.seen["accuracy"] = (classes == labels).float().mean()

    def metrics(self) -> Mapping[str, Tensor]:
        return self.seen
