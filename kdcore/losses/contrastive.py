"""Contrastive representation distillation: a sample's two embeddings are told from those of other samples."""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, LossError, Term, full_precision
from kdcore.losses.embedding import EmbeddingLossConfig


def contrastive(student_scores: Tensor, teacher_scores: Tensor, noise: float) -> Tensor:
    """Noise-contrastive estimation, of the student's scores plus of the teacher's (Tian et al. 2020, equation 17).

    With x = exp(score), of each: -[Σ log(x₀/(x₀ + c)) + Σ over the negatives of log(c/(x + c))] / B.

    Args:
        student_scores, teacher_scores: (B, 1 + K) logarithms of the odds that two embeddings are of one sample, the
            true pair first. Those of the teacher are of its trained embedding: both have a gradient.
        noise: c, the number of negatives times the probability of each, K/N.

    Returns:
        A scalar, at least 0; float32 for half-precision scores.

    Raises:
        ValueError: the shapes differ, or there is no negative.
    """
    if student_scores.shape != teacher_scores.shape or student_scores.dim() != 2 or student_scores.shape[1] < 2:
        shapes = f"student {tuple(student_scores.shape)} and teacher {tuple(teacher_scores.shape)}"
        raise ValueError(f"{shapes} are no scores (B, 1 + K) of the same samples")
    student, teacher = (full_precision(scores) - math.log(noise) for scores in (student_scores, teacher_scores))
    # log(x/(x + c)) is -softplus(log c - log x): no exponential is made that could overflow.
    true_pairs = F.softplus(-student[:, 0]) + F.softplus(-teacher[:, 0])
    return (true_pairs + F.softplus(student[:, 1:]).sum(dim=1) + F.softplus(teacher[:, 1:]).sum(dim=1)).mean()


class ContrastiveConfig(EmbeddingLossConfig):
    """Two linear embeddings, of student and teacher, are near for one sample and far for samples of other classes.

    Two memory banks hold an embedding of every training sample by each side; the other side's batch is compared with
    them. The true pair is a sample's own entry; the negatives are drawn from the samples of other classes, as far as
    their labels were seen, and without labels from all other samples. Banks and embeddings are saved in checkpoints.
    """

    title: ClassVar[str] = "Contrastive representation distillation"
    source: ClassVar[str] = (
        "Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699, section 3"
    )

    type: Literal["contrastive"] = "contrastive"
    weight: float = Field(default=0.8, ge=0, le=1e6)
    """Multiplier of this term in the sum."""
    width: int = Field(default=128, ge=1, le=65_536)
    """Of both embeddings."""
    negatives: int = Field(default=16_384, ge=1, le=1_048_576)
    """How many are drawn for each sample, with replacement; never more than there are other training samples."""
    temperature: float = Field(default=0.07, ge=0.02, le=1000)
    """By which the inner products of embeddings are divided."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Share of the old entry in a bank's new one."""

    def build(self, context: Context) -> Term:
        if context.samples < 2:
            raise LossError("negatives", "there is one training sample, which has no other to be told from; use more")
        return Contrastive(self, context)


class Contrastive(Term):
    student_bank: Tensor
    teacher_bank: Tensor
    groups: Tensor
    scales: Tensor

    def __init__(self, config: ContrastiveConfig, context: Context) -> None:
        super().__init__()
        self.config = config
        ours, theirs = config.embedding_pair(context)
        self.layers = [(ours, theirs)]
        self.of_student = nn.Linear(math.prod(context.student[ours]), config.width)
        self.of_teacher = nn.Linear(math.prod(config.shapes_of_teacher(context)[theirs]), config.width)
        self.count = min(config.negatives, context.samples - 1)
        bound = math.sqrt(3 / config.width)  # entries of about length 1, as the embeddings have
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(context.samples, config.width).uniform_(-bound, bound))
        # A sample's class, once it was seen with its label; before, a negative number that no other sample has.
        self.register_buffer("groups", -1 - torch.arange(context.samples))
        self.register_buffer("scales", torch.zeros(2))  # the first batch sets them

    def comparisons(self, batch_size: int) -> int:
        """With every entry of both banks."""
        return 2 * batch_size * len(self.groups)

    def forward(self, batch: Batch) -> Tensor:
        ours, theirs = self.layers[0]
        student = F.normalize(self.of_student(batch.student[ours].flatten(1)), dim=1)
        teacher = F.normalize(self.of_teacher(self.config.taught(batch)[theirs].flatten(1)), dim=1)
        if batch.labels is not None and batch.labels.dim() == 1 and not batch.labels.is_floating_point():
            seen = torch.where(batch.labels >= 0, batch.labels, self.groups[batch.indices])
            self.groups = self.groups.index_copy(0, batch.indices, seen)
        entries = torch.cat([batch.indices[:, None], self.draw(batch.indices)], dim=1)  # (B, 1 + K)
        # All products, B·N numbers, of which some are taken: to gather the entries would take B·K·width.
        products = [
            (student @ self.teacher_bank.T).gather(1, entries) / self.config.temperature,
            (teacher @ self.student_bank.T).gather(1, entries) / self.config.temperature,
        ]
        self._set_scales(products)
        student_scores, teacher_scores = (p - scale.log() for p, scale in zip(products, self.scales, strict=True))
        self.student_bank = self._moved(self.student_bank, batch.indices, student)
        self.teacher_bank = self._moved(self.teacher_bank, batch.indices, teacher)
        return contrastive(student_scores, teacher_scores, self.count / len(self.groups))

    def draw(self, indices: Tensor) -> Tensor:
        """Negatives for some samples, by torch's global generator: (B,) -> (B, K) places in the training split.

        Each sample of another group is as likely as any other; where all are of one group, all are drawn from.
        """
        ordered, order = self.groups.sort(stable=True)
        own = self.groups[indices]
        first = torch.searchsorted(ordered, own)  # (B,): where the group begins in the order
        size = torch.searchsorted(ordered, own, right=True) - first
        others = (len(ordered) - size)[:, None]
        drawn = torch.randint(2**62, (len(indices), self.count), device=indices.device)
        drawn %= torch.where(others > 0, others, len(ordered))
        return order[torch.where((drawn >= first[:, None]) & (others > 0), drawn + size[:, None], drawn)]

    @torch.no_grad()
    def _set_scales(self, products: list[Tensor]) -> None:
        """In the first batch: the constants by which exp(product) becomes odds, N times its mean (Wu et al. 2018)."""
        means = torch.stack([product.exp().mean() for product in products])
        self.scales = torch.where(self.scales > 0, self.scales, means * len(self.groups))

    @torch.no_grad()
    def _moved(self, bank: Tensor, indices: Tensor, embeddings: Tensor) -> Tensor:
        """A bank with new entries: a new tensor, since the old one is still needed for the gradient."""
        momentum = self.config.momentum
        entries = F.normalize(momentum * bank[indices] + (1 - momentum) * embeddings, dim=1)
        return bank.index_copy(0, indices, entries)
