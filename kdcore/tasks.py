"""What is to be learned from the labels: how an output is scored, and which losses make sense."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore import evaluate
from kdcore.data.base import TaskName

Score = Callable[[Tensor, Tensor], float]
MetricName = Literal[
    "accuracy", "top_k_accuracy", "nll", "ece", "macro_f1", "auroc", "label_accuracy",
    "mae", "rmse", "r2", "recall_at_1", "recall_at_5",
]  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One kind of task.

    Attributes:
        scores: of one model's outputs (N, C) on labelled samples, by name, the most important first.
        least: those of them of which less is better.
        compared: by what two models are compared: `of_each` gives what every sample adds to it, (N,), more being
            better.
        likeness: how much a student's outputs are like its teacher's, by name.
        measure: everything the result says of one model, as JSON values.
        calibrated: whether outputs are logits of one class, whose temperature can be fitted.
    """

    name: TaskName
    scores: Mapping[MetricName, Score]
    compared: str
    of_each: Callable[[Tensor, Tensor], Tensor]
    likeness: Mapping[str, Score]
    measure: Callable[[Tensor, Tensor], dict[str, Any]]
    least: frozenset[str] = frozenset({"nll", "ece", "mae", "rmse"})
    calibrated: bool = False

    @property
    def main(self) -> MetricName:
        return next(iter(self.scores))

    def better(self, name: str, value: float) -> float:
        """A score as a number of which more is better."""
        return -value if name in self.least else value


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Mean over classes of 2·TP / (2·TP + FP + FN), an output above 0 being a yes; 0 where nothing is there."""
    yes, true = logits > 0, labels > 0.5
    hits = (yes & true).sum(0).double()
    return float((2 * hits / (yes.sum(0) + true.sum(0)).clamp(min=1)).mean())


def auroc(logits: Tensor, labels: Tensor) -> float:
    """Mean over classes of the share of (positive, negative) pairs in the right order, a tie counting half.

    By ranks (Mann and Whitney 1947). Classes without both kinds of sample are left out; one half where none is left.
    """
    found = []
    for outputs, truth in zip(logits.double().unbind(1), labels.unbind(1), strict=True):
        positive = truth > 0.5
        count, others = int(positive.sum()), int((~positive).sum())
        if count and others:
            rank_sum = float(_mean_ranks(outputs)[positive].sum())
            found.append((rank_sum - count * (count + 1) / 2) / (count * others))
    return sum(found) / len(found) if found else 0.5


def _mean_ranks(values: Tensor) -> Tensor:
    """(N,) -> (N,) ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    mean: Tensor = counts.cumsum(0).double() - (counts - 1) / 2
    return mean[inverse]


def binary_nll(logits: Tensor, labels: Tensor) -> float:
    """Mean over samples and classes of the binary cross-entropy, in nats."""
    return F.binary_cross_entropy_with_logits(logits.double(), labels.double()).item()


def label_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of right decisions over samples and classes, an output above 0 being a yes."""
    return float(((logits > 0) == (labels > 0.5)).double().mean())


def binary_predictive_kl(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Mean over samples and classes of KL(teacher‖student) of the two answers, yes and no, in nats."""
    ours, theirs = student_logits.double(), teacher_logits.double()
    yes, no = F.logsigmoid(theirs), F.logsigmoid(-theirs)
    divergence = yes.exp() * (yes - F.logsigmoid(ours)) + no.exp() * (no - F.logsigmoid(-ours))
    return max(0.0, float(divergence.mean()))


def mae(outputs: Tensor, targets: Tensor) -> float:
    """Mean absolute error over samples and targets."""
    return float((outputs.double() - targets.double()).abs().mean())


def rmse(outputs: Tensor, targets: Tensor) -> float:
    """Root of the mean squared error over samples and targets."""
    return float((outputs.double() - targets.double()).square().mean().sqrt())


def r2(outputs: Tensor, targets: Tensor) -> float:
    """1 - squared error / squared deviation from the mean, averaged over targets; 0 for a constant target."""
    wrong = (outputs.double() - targets.double()).square().sum(0)
    spread = (targets.double() - targets.double().mean(0)).square().sum(0)
    return float(torch.where(spread > 0, 1 - wrong / spread.clamp(min=1e-300), 0.0).mean())


def recall_hits(embeddings: Tensor, labels: Tensor, k: int) -> Tensor:
    """(N,) bool: whether a sample of the same class is among the k nearest others, by cosine."""
    directions = F.normalize(embeddings.double(), dim=1)
    hits = []
    for start in range(0, len(directions), 1024):  # (1024, N) similarities at a time
        near = directions[start : start + 1024] @ directions.T
        places = torch.arange(start, start + len(near))
        near[torch.arange(len(near)), places] = -torch.inf
        best = near.topk(min(k, len(directions) - 1), dim=1).indices
        hits.append((labels[best] == labels[places][:, None]).any(1))
    return torch.cat(hits)


def recall_at(k: int) -> Score:
    return lambda outputs, labels: float(recall_hits(outputs, labels, k).double().mean())


def _scored(scores: Mapping[MetricName, Score]) -> Callable[[Tensor, Tensor], dict[str, Any]]:
    return lambda outputs, labels: {name: score(outputs, labels) for name, score in scores.items()}


_MULTI: dict[MetricName, Score] = {
    "macro_f1": macro_f1,
    "auroc": auroc,
    "label_accuracy": label_accuracy,
    "nll": binary_nll,
}
_REGRESSION: dict[MetricName, Score] = {"mae": mae, "rmse": rmse, "r2": r2}
_RECALL: dict[MetricName, Score] = {"recall_at_1": recall_at(1), "recall_at_5": recall_at(5)}

TASKS: dict[TaskName, Task] = {
    "classification": Task(
        "classification",
        {
            "accuracy": evaluate.accuracy,
            "top_k_accuracy": lambda logits, labels: evaluate.top_k_accuracy(
                logits, labels, evaluate.top_k(logits.shape[1])
            ),
            "macro_f1": evaluate.macro_f1,
            "nll": evaluate.nll,
            "ece": evaluate.expected_calibration_error,
        },
        "accuracy",
        lambda logits, labels: (logits.argmax(1) == labels).double(),
        {"agreement": evaluate.agreement, "predictive_kl": evaluate.predictive_kl},
        evaluate.measure,
        calibrated=True,
    ),
    "multi_label": Task(
        "multi_label",
        _MULTI,
        "label_accuracy",
        lambda logits, labels: ((logits > 0) == (labels > 0.5)).double().mean(1),
        {
            "agreement": lambda student, teacher: label_accuracy(student, (teacher > 0).double()),
            "predictive_kl": binary_predictive_kl,
        },
        _scored(_MULTI),
    ),
    "regression": Task(
        "regression",
        _REGRESSION,
        "mae",
        lambda outputs, targets: -(outputs.double() - targets.double()).abs().mean(1),
        {"teacher_mae": mae},
        _scored(_REGRESSION),
    ),
    "embedding": Task(
        "embedding",
        _RECALL,
        "recall_at_1",
        lambda outputs, labels: recall_hits(outputs, labels, 1).double(),
        {},
        _scored(_RECALL),
    ),
}
