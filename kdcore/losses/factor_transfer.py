"""Factor transfer: the student translates its map into the teacher's own paraphrase of its map."""

from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, Rival, Term, full_precision
from kdcore.losses.pairing import LayerLossConfig, check_places
from kdcore.losses.pooling import check_maps, pooled_alike
from kdcore.losses.regressor import BatchNorm


def factor_transfer(student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
    """Mean over all entries of |F_s - F_t|, F = the L2-normalised map of the channels' mean of f² (Kim et al. 2018).

    Args:
        student_factor, teacher_factor: (B, C, H, W), of any widths; the larger one is pooled to the smaller size
            first; no gradient reaches the teacher's.

    Returns:
        A scalar, at least 0; float32 for half-precision factors.

    Raises:
        ValueError: they are no maps, or of different batches.
    """
    check_maps(student_factor, teacher_factor)
    student, teacher = pooled_alike(full_precision(student_factor), full_precision(teacher_factor.detach()))
    return F.l1_loss(_normalized(student), _normalized(teacher))


def _normalized(factor: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H·W): rows of length 1; a map of zeros becomes zeros."""
    return F.normalize(factor.square().mean(dim=1).flatten(1), dim=1)


class FactorTransferConfig(LayerLossConfig):
    """Difference between the factors of student and teacher, in one pair of maps.

    A paraphraser, an autoencoder of convolutions, first learns to reconstruct the teacher's map, by Adam and squared
    error, in the stage's first epochs; the loss is 0 until then. Afterwards it is frozen, and a translator, which
    trains with the student, turns the student's map into the paraphraser's code. Left out, the layers are the deepest
    pair of maps that fits.
    """

    title: ClassVar[str] = "Factors of a paraphraser"
    source: ClassVar[str] = "Kim, Park, Kwak: Paraphrasing Complex Network, NeurIPS 2018, arXiv 1802.04977"

    type: Literal["factor_transfer"] = "factor_transfer"
    weight: float = Field(default=200.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""
    k: float = Field(default=0.5, gt=0, le=4)
    """Channels of a factor, as a share of the teacher's."""
    paraphraser_epochs: float = Field(default=30.0, gt=0, le=100_000)
    """Epochs in which the paraphraser learns; never more than half of the stage's."""
    paraphraser_lr: float = Field(default=1e-3, gt=0, le=1)
    """Its learning rate."""

    def build(self, context: Context) -> Term:
        pair, teacher = self.pair(context, "map"), self.shapes_of_teacher(context)
        check_places(context.student, teacher, [pair], "student_layer")
        widths = context.student[pair[0]][0], teacher[pair[1]][0]
        return FactorTransfer(self, pair, widths, min(self.paraphraser_epochs, context.epochs / 2))


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map: (B, C, H, W) -> code (B, K, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, code: int) -> None:
        super().__init__()
        self.encoder = _convolutions([channels, channels, code, code], normed=False)
        self.decoder = _convolutions([code, code, channels, channels], normed=False)

    def forward(self, teacher_map: Tensor) -> Tensor:
        reconstruction: Tensor = self.decoder(self.encoder(teacher_map))
        return reconstruction


def _convolutions(widths: list[int], *, normed: bool) -> nn.Sequential:
    """A 3x3 convolution from each width to the next, each followed by a leaky ReLU of slope 0.1."""
    layers = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not normed))
        if normed:
            layers.append(BatchNorm(outputs))
        layers.append(nn.LeakyReLU(0.1))
    return layers


class FactorTransfer(Term):
    """`learning`: epochs until the paraphraser is frozen."""

    reconstruction: Tensor

    def __init__(
        self, config: FactorTransferConfig, pair: tuple[str, str], widths: tuple[int, int], learning: float
    ) -> None:
        super().__init__()
        self.config, self.layers, self.learning = config, [pair], learning
        student, teacher = widths
        code = max(1, round(config.k * teacher))
        self.translator = _convolutions([student, student, code, code], normed=True)
        self.paraphraser = Paraphraser(teacher, code)
        self.register_buffer("reconstruction", torch.zeros(()))  # saved: a resumed stage goes on reporting it

    def forward(self, batch: Batch) -> Tensor:
        ((ours, theirs),) = self.layers
        student_factor: Tensor = self.translator(batch.student[ours])
        if batch.epoch < self.learning:
            # A zero with a graph: it may be the stage's only term, and fused SGD takes no parameter that gets its
            # first gradient later than the others.
            return 0 * student_factor.sum()
        with torch.no_grad():
            teacher_factor = self.paraphraser.encoder(self.config.taught(batch)[theirs])
        return factor_transfer(student_factor, teacher_factor)

    def rival(self) -> Rival:
        optimizer = torch.optim.Adam(self.paraphraser.parameters(), lr=self.config.paraphraser_lr, fused=True)
        return Rival(self.paraphraser, optimizer, self._reconstruct)

    def _reconstruct(self, batch: Batch) -> Tensor | None:
        """The paraphraser's own loss; none once it is frozen."""
        if batch.epoch >= self.learning:
            return None
        teacher = self.config.taught(batch)[self.layers[0][1]]
        loss = F.mse_loss(self.paraphraser(teacher), teacher)
        self.reconstruction.copy_(loss.detach())
        return loss

    def metrics(self) -> dict[str, Tensor]:
        return {"reconstruction": self.reconstruction}
