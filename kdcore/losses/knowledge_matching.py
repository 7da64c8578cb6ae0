"""Knowledge matching: hints on several layers at once."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.losses.base import Batch, Context, Term
from kdcore.losses.hint import hint
from kdcore.losses.pairing import LayersLossConfig, Pairs
from kdcore.losses.regressor import regressor


def knowledge_matching(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """The sum over the pairs of layers of their `hint`.

    Args:
        student_features, teacher_features: as many, at least one; each pair as for `hint`, of any batch-first shape.

    Returns:
        A scalar, at least 0; float32 for half-precision features.

    Raises:
        ValueError: there are not as many of each, or the shapes of a pair differ other than in size.
    """
    return torch.stack([hint(s, t) for s, t in zip(student_features, teacher_features, strict=True)]).sum()


class KnowledgeMatchingConfig(LayersLossConfig):
    """The sum of `hint` over several pairs of layers, each with a regressor where the shapes differ."""

    title: ClassVar[str] = "Hints of several hidden layers"
    source: ClassVar[str] = "Romero et al.: FitNets, ICLR 2015, arXiv 1412.6550, section 2.2, on several layers"

    type: Literal["knowledge_matching"] = "knowledge_matching"
    weight: float = Field(default=100.0, ge=0, le=1e6)
    """Multiplier of this term in the sum."""
    relu: bool | None = None
    """Whether a ReLU ends the regressors of maps; left out: unless the teacher's layer is one before its activation.
    `false` is right for a teacher whose maps have negative values, as after GELU."""

    def build(self, context: Context) -> Term:
        pairs, teacher = self.pairs(context, "any"), self.shapes_of_teacher(context)
        bridges = nn.ModuleList(regressor(context.student, teacher, pair, self.relu) for pair in pairs)
        return KnowledgeMatching(self, pairs, bridges)


class KnowledgeMatching(Term):
    def __init__(self, config: KnowledgeMatchingConfig, pairs: Pairs, regressors: nn.ModuleList) -> None:
        super().__init__()
        self.config, self.layers, self.regressors = config, pairs, regressors

    def forward(self, batch: Batch) -> Tensor:
        taught = self.config.taught(batch)
        student = [bridge(batch.student[s]) for bridge, (s, _) in zip(self.regressors, self.layers, strict=True)]
        return knowledge_matching(student, [taught[t] for _, t in self.layers])
