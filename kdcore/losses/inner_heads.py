"""Inner heads: classifiers on the student's hidden layers, taught by the labels and by its own last one."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.data.base import TaskName
from kdcore.losses.base import BaseLossConfig, Batch, Context, LossError, Shapes, Term, layer_shape
from kdcore.losses.cross_entropy import cross_entropy
from kdcore.losses.embedding import averaged
from kdcore.losses.hint import hint
from kdcore.losses.kd import kd
from kdcore.losses.labelled import check_labels, labels_of
from kdcore.losses.pairing import candidates, stage_ends
from kdcore.losses.temperature import Kelvin, Temperature


def inner_heads(
    head_logits: Sequence[Tensor],
    last_logits: Tensor,
    labels: Tensor,
    temperature: float = 3.0,
    soft_share: float = 0.3,
) -> Tensor:
    """Sum over the heads of (1 - soft_share) · cross-entropy + soft_share · `kd` from the last logits.

    Args:
        head_logits: (B, C) of each head.
        last_logits: (B, C) of the whole network, the heads' teacher: it gets no gradient.
        labels: (B,) int64 class indices.
        temperature: T of the divergence, which is multiplied by T².
        soft_share: of the divergence.

    Returns:
        A scalar, at least 0; float32 for half-precision logits.

    Raises:
        ValueError: there is no head, or the shapes differ.
    """
    if not head_logits:
        raise ValueError("there is no head")
    hard = torch.stack([cross_entropy(logits, labels) for logits in head_logits]).sum()
    soft = torch.stack([kd(logits, last_logits, temperature) for logits in head_logits]).sum()
    return (1 - soft_share) * hard + soft_share * soft


class InnerHeadsConfig(BaseLossConfig, Temperature):
    """Linear classifiers on hidden layers of the student, each with cross-entropy and a divergence from its last one.

    The student is its own teacher: the gradient of the shallow heads trains its early layers. Maps are averaged over
    positions first. The heads train with the student and are not exported. The student's own label loss is a term of
    its own, `cross_entropy`. No teacher is needed.
    """

    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    brings_teacher: ClassVar[bool] = True
    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification"})
    title: ClassVar[str] = "Self-distillation of inner heads"
    source: ClassVar[str] = "Zhang et al.: Be Your Own Teacher, ICCV 2019, arXiv 1905.08094, section 3"

    type: Literal["inner_heads"] = "inner_heads"
    student_layers: list[str] | None = Field(default=None, min_length=1, max_length=64)
    """The hidden layers that get a head; left out: the last maps of each size and all vectors, but for the deepest."""
    student_layer: str = "logits"
    """The student's view that is read as the last logits, the heads' teacher."""
    temperature: Kelvin = 3.0
    """T of the divergence: the higher, the more the small probabilities count."""
    soft_share: float = Field(default=0.3, ge=0, le=1)
    """Of the divergence from the last logits; the rest is cross-entropy on the labels."""
    hint_weight: float = Field(default=0.0, ge=0, le=1e6)
    """Of each layer's mean squared difference, after a linear map, from the deepest hidden layer."""

    def build(self, context: Context) -> Term:
        check_labels(context, self.student_layer, "classification")
        return InnerHeads(self, self._layers(context.student), candidates(context.student, "any")[-1], context)

    def _layers(self, shapes: Shapes) -> list[str]:
        if self.student_layers is not None:
            for layer in self.student_layers:
                layer_shape(shapes, layer, "student_layers", "student")
                if layer in ("logits", self.student_layer):
                    raise LossError("student_layers", "a head on the logits would not be an inner one; name others")
            return self.student_layers
        hidden = candidates(shapes, "any")
        wanted = {*stage_ends(shapes, candidates(shapes, "map")), *candidates(shapes, "vector")}
        inner = [layer for layer in hidden[:-1] if layer in wanted]
        if not inner:
            known = ", ".join(map(repr, hidden)) or "none"
            raise LossError("student_layers", f"at least two hidden layers are needed, the student has {known}")
        return inner


class InnerHeads(Term):
    def __init__(self, config: InnerHeadsConfig, layers: Sequence[str], deepest: str, context: Context) -> None:
        super().__init__()
        self.config, self.deepest = config, deepest
        self.layers = [(layer, config.student_layer) for layer in layers]
        widths = [context.student[layer][0] for layer in layers]
        self.heads = nn.ModuleList(nn.Linear(width, context.classes) for width in widths)
        hinted = widths if config.hint_weight else []
        self.regressors = nn.ModuleList(nn.Linear(width, context.student[deepest][0]) for width in hinted)

    def forward(self, batch: Batch) -> Tensor:
        labels = labels_of(batch, self.config.type)
        features = [averaged(batch.student[layer]) for layer, _ in self.layers]
        logits = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        last, temperature = batch.student[self.config.student_layer], self.config.temperature_at(batch)
        loss = inner_heads(logits, last, labels, temperature, self.config.soft_share)
        deepest = averaged(batch.student[self.deepest])
        for regressor, feature in zip(self.regressors, features, strict=False):
            loss = loss + self.config.hint_weight * hint(regressor(feature), deepest)
        return loss
