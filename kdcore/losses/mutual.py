"""Deep mutual learning: the student and a peer that is no better at first teach each other."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from kdcore.config import dotted
from kdcore.data.base import TaskName
from kdcore.losses.base import BaseLossConfig, Batch, Context, LossError, Term
from kdcore.losses.cross_entropy import cross_entropy
from kdcore.losses.kd import kd
from kdcore.losses.labelled import check_labels, labels_of
from kdcore.losses.temperature import Kelvin, Temperature
from kdcore.models import ModelConfig, ModelError, Network


def mutual(student_logits: Tensor, peer_logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(peer ‖ student) for the student, plus cross-entropy and KL(student ‖ peer) for the peer (Zhang et al. 2018).

    Each divergence is `kd` at this temperature: of it only the one that is taught has a gradient.

    Args:
        student_logits, peer_logits: (B, C).
        labels: (B,) int64 class indices.
        temperature: T.

    Returns:
        A scalar, at least 0; float32 for half-precision logits.

    Raises:
        ValueError: the shapes differ.
    """
    taught_by_peer = kd(student_logits, peer_logits, temperature)
    return taught_by_peer + cross_entropy(peer_logits, labels) + kd(peer_logits, student_logits, temperature)


class MutualConfig(BaseLossConfig, Temperature):
    """Divergences between the student and a peer, both ways, and the peer's cross-entropy on the labels.

    The peer is trained beside the student, by the same optimizer, in float32, and never exported. The student's own
    label loss is a term of its own, `cross_entropy`. No teacher is needed.
    """

    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    brings_teacher: ClassVar[bool] = True
    tasks: ClassVar[frozenset[TaskName] | None] = frozenset({"classification"})
    title: ClassVar[str] = "Deep mutual learning"
    source: ClassVar[str] = "Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018, arXiv 1706.00384, section 3"

    type: Literal["mutual"] = "mutual"
    peer: ModelConfig
    """The peer's architecture."""
    temperature: Kelvin = 1.0
    """T of both divergences: the higher, the more the small probabilities count."""
    student_layer: str = "logits"
    """The student's view that is read as logits."""

    def build(self, context: Context) -> Term:
        check_labels(context, self.student_layer, "classification")
        if self.peer.classes not in (None, context.classes):
            message = f"the peer has {self.peer.classes} classes, the data has {context.classes}; leave `classes` out"
            raise LossError("peer", message)
        if not self.peer.trainable:
            raise LossError("peer", f"a model of type {self.peer.type} cannot be trained; use another model")
        try:
            return Mutual(self, self.peer.build(context.input_shape, context.classes, context.vocabulary))
        except ModelError as error:
            raise LossError("peer", f"{dotted(error.loc)}: {error}") from error


class Mutual(Term):
    def __init__(self, config: MutualConfig, peer: Network) -> None:
        super().__init__()
        self.config, self.peer = config, peer
        self._watched: Mapping[str, Tensor] = {}

    def forward(self, batch: Batch) -> Tensor:
        labels = labels_of(batch, self.config.type)
        student, peer = batch.student[self.config.student_layer], self.peer(batch.inputs)
        self._watched = {"peer_accuracy": (peer.detach().argmax(dim=1) == labels).float().mean()}
        return mutual(student, peer, labels, self.config.temperature_at(batch))

    def beside(self) -> nn.Module:
        return self.peer

    def metrics(self) -> Mapping[str, Tensor]:
        return self._watched
