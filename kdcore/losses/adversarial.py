"""Adversarial distillation: a discriminator tells the teacher's outputs from the student's, which learns to pass."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, LossError, Rival, TaughtLossConfig, Term, full_precision, layer_shape
from kdcore.losses.embedding import averaged
from kdcore.optim import AdamConfig, LearningRate

Width = Annotated[int, Field(ge=1, le=65_536)]


def adversarial(student_scores: Tensor) -> Tensor:
    """Mean over B of -log D(s), what the student minimises (Goodfellow et al. 2014: the form that does not saturate).

    Args:
        student_scores: (B,) the discriminator's scores before its sigmoid; D = sigmoid(score) is the probability
            that an output is the teacher's.

    Returns:
        A scalar, above 0; float32 for half-precision scores.
    """
    return F.softplus(-full_precision(student_scores)).mean()


def discrimination(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Mean over B of -log D(t) - log(1 - D(s)), what the discriminator minimises; 2 ln 2 where it cannot tell.

    Args:
        student_scores, teacher_scores: (B,) of each side, before the sigmoid.

    Returns:
        A scalar, above 0; float32 for half-precision scores.
    """
    return F.softplus(full_precision(student_scores)).mean() + F.softplus(-full_precision(teacher_scores)).mean()


class AdversarialConfig(TaughtLossConfig):
    """Cross-entropy of a discriminator that shall take the student's outputs for the teacher's.

    The discriminator, fully connected layers on the logits or on a hidden layer (maps: their mean over positions),
    has an Adam of its own and makes one update after each of the student's. Its accuracy on both sides' samples, its
    loss and the student's `diversity` are metrics: the mean over dimensions of the outputs' standard deviation in the
    batch, divided by the teacher's. It falls towards 0 where all of the student's outputs become one.
    """

    title: ClassVar[str] = "Adversarial distillation"
    source: ClassVar[str] = (
        "Xu, Hsu, Huang 2017, arXiv 1709.00513; Belagiannis, Farshad, Galasso: Adversarial Network Compression,"
        " arXiv 1803.10750; Goodfellow et al. 2014, arXiv 1406.2661, section 3"
    )

    type: Literal["adversarial"] = "adversarial"
    student_layer: str = "logits"
    """The student's view that is judged."""
    teacher_layer: str = "logits"
    """The teacher's view that is its example, of the same width."""
    hidden: list[Width] = Field(default=[128, 128], max_length=16)
    """Widths of the discriminator's hidden layers, in order."""
    lr: LearningRate = 1e-3
    """Learning rate of the discriminator's Adam."""

    def build(self, context: Context) -> Term:
        ours = layer_shape(context.student, self.student_layer, "student_layer", "student")
        theirs = layer_shape(self.shapes_of_teacher(context), self.teacher_layer, "teacher_layer", "teacher")
        if ours[0] != theirs[0]:
            raise LossError(
                "teacher_layer",
                f"the student's {self.student_layer!r} is {ours[0]} wide, the teacher's {self.teacher_layer!r}"
                f" {theirs[0]}; name two layers of the same width",
            )
        return Adversarial(self, ours[0])


class Adversarial(Term):
    def __init__(self, config: AdversarialConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.layers = [(config.student_layer, config.teacher_layer)]
        self.discriminator = discriminator([width, *config.hidden])
        self._watched: Mapping[str, Tensor] = {}

    def forward(self, batch: Batch) -> Tensor:
        return adversarial(self._scores(self._outputs(batch)[0]))

    def rival(self) -> Rival:
        adam = AdamConfig(lr=self.config.lr, betas=(0.5, 0.999))  # Radford et al. 2016 for adversarial training
        return Rival(self.discriminator, adam.build(self.discriminator.parameters()), self._discriminate)

    def metrics(self) -> Mapping[str, Tensor]:
        return self._watched

    def _discriminate(self, batch: Batch) -> Tensor:
        """The discriminator's loss, before the update it is for; what is watched is of the same moment."""
        student, teacher = self._outputs(batch)
        ours, theirs = self._scores(student), self._scores(teacher)
        loss = discrimination(ours, theirs)
        self._watched = {
            "discriminator_loss": loss.detach(),
            "accuracy_on_student": (ours < 0).float().mean(),
            "accuracy_on_teacher": (theirs > 0).float().mean(),
            "diversity": (_spread(student) + 1e-12) / (_spread(teacher) + 1e-12),
        }
        return loss

    def _outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, D) of the student and of the teacher."""
        student, teacher = (
            batch.student[self.config.student_layer],
            self.config.taught(batch)[self.config.teacher_layer],
        )
        return averaged(student), averaged(teacher.detach())

    def _scores(self, outputs: Tensor) -> Tensor:
        """(B, D) -> (B,)"""
        scores: Tensor = self.discriminator(full_precision(outputs)).squeeze(1)
        return scores


def discriminator(widths: list[int]) -> nn.Sequential:
    """Fully connected layers of these widths with leaky ReLUs, then one score; no batch normalisation, by which
    one sample's score would depend on the others'."""
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


def _spread(outputs: Tensor) -> Tensor:
    """(B, D) -> the mean over dimensions of the standard deviation over the batch, a scalar without gradient."""
    return outputs.detach().std(dim=0, correction=0).mean()
