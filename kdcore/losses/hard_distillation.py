"""Cross-entropy on the class that the teacher says: its decision counts, its doubts do not."""

from typing import ClassVar, Literal

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.data.base import TaskName
from kdcore.losses.base import Batch, Context, LogitLossConfig, Term, check_same_shape, full_precision


def hard_distillation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean cross-entropy on the teacher's arg max, in nats (Touvron et al. 2021, equation 3, its second term).

    Args:
        student_logits, teacher_logits: (B, C); of equal teacher's logits the first counts.

    Returns:
        A scalar; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student_logits, teacher_logits)
    return F.cross_entropy(full_precision(student_logits), teacher_logits.detach().argmax(dim=1))


class HardDistillationConfig(LogitLossConfig):
    """Cross-entropy between the student's logits and the teacher's most likely class.

    The paper's loss is 0.5 · cross_entropy + 0.5 · hard_distillation; it has no temperature.
    """

    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification"})
    title: ClassVar[str] = "Cross-entropy on the teacher's decision"
    source: ClassVar[str] = "DeiT: Touvron et al., ICML 2021, arXiv 2012.12877, section 4"

    type: Literal["hard_distillation"] = "hard_distillation"

    def build(self, context: Context) -> Term:
        self.check_logits(context)
        return HardDistillation(self)


class HardDistillation(Term):
    def __init__(self, config: HardDistillationConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Tensor:
        return hard_distillation(*self.config.logits(batch))
