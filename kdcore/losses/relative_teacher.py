"""Relative teacher: the student's distances between samples are the teacher's."""

from typing import ClassVar, Literal

from torch import Tensor

from kdcore.losses.base import Context, Term
from kdcore.losses.embedding import EmbeddingLossConfig, EmbeddingTerm, distances, embeddings


def relative_teacher(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean over the pairs i < j of abs(‖s_i - s_j‖ - ‖t_i - t_j‖) (Yu et al. 2019).

    Args:
        student_embedding, teacher_embedding: (B, D_s) and (B, D_t), maps are flattened; no gradient reaches the
            teacher's.

    Returns:
        A scalar, at least 0, for a batch of one 0; float32 for half-precision embeddings.

    Raises:
        ValueError: the sides differ in samples.
    """
    student, teacher = embeddings(student_embedding, teacher_embedding)
    ordered_pairs = len(student) * (len(student) - 1)  # of which each pair makes two, equally far apart
    return (distances(student) - distances(teacher)).abs().sum() / max(ordered_pairs, 1)


class RelativeTeacherConfig(EmbeddingLossConfig):
    """Mean absolute difference between the student's and the teacher's distances between samples.

    Unlike `rkd_distance` it also asks for the teacher's scale. Widths may differ.
    """

    title: ClassVar[str] = "Relative teacher: distances between samples"
    source: ClassVar[str] = (
        "Yu, Yazici, Liu, van de Weijer, Cheng, Ramisa: Learning Metrics from Teachers, CVPR 2019, arXiv 1904.03624"
    )

    type: Literal["relative_teacher"] = "relative_teacher"

    def build(self, context: Context) -> Term:
        return EmbeddingTerm(self, context, relative_teacher)
