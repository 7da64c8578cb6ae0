"""Absolute teacher: the student's embedding of a sample lies where the teacher's does."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, Term
from kdcore.losses.embedding import EmbeddingLossConfig, check_same_width, embeddings


def absolute_teacher(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean over B of ‖s - t‖₂ (Yu et al. 2019); its gradient is 0 where s equals t.

    Args:
        student_embedding, teacher_embedding: (B, D), maps are flattened; no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision embeddings.

    Raises:
        ValueError: the sides differ in samples or width.
    """
    student, teacher = embeddings(student_embedding, teacher_embedding)
    check_same_width(student, teacher)
    apart: Tensor = torch.linalg.vector_norm(student - teacher, dim=1)
    return apart.mean()


class AbsoluteTeacherConfig(EmbeddingLossConfig):
    """Mean Euclidean distance between the student's and the teacher's embedding of a sample.

    Where the widths differ, a linear layer that trains with the student takes its embedding to the teacher's width.
    """

    title: ClassVar[str] = "Absolute teacher: distance between embeddings"
    source: ClassVar[str] = (
        "Yu, Yazici, Liu, van de Weijer, Cheng, Ramisa: Learning Metrics from Teachers, CVPR 2019, arXiv 1904.03624"
    )

    type: Literal["absolute_teacher"] = "absolute_teacher"

    def build(self, context: Context) -> Term:
        return AbsoluteTeacher(self, context)


class AbsoluteTeacher(Term):
    def __init__(self, config: AbsoluteTeacherConfig, context: Context) -> None:
        super().__init__()
        self.config = config
        ours, theirs = config.embedding_pair(context)
        self.layers = [(ours, theirs)]
        widths = math.prod(context.student[ours]), math.prod(config.shapes_of_teacher(context)[theirs])
        self.regressor = nn.Linear(*widths) if widths[0] != widths[1] else nn.Identity()

    def forward(self, batch: Batch) -> Tensor:
        ours, theirs = self.layers[0]
        return absolute_teacher(self.regressor(batch.student[ours].flatten(1)), self.config.taught(batch)[theirs])
