"""What a classifier is worth: one pass over a split, then plain functions of its logits.

Everything is computed in float64 on the CPU, so the numbers do not depend on how sums are cut.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

from kdcore.compare import wilson_interval
from kdcore.data import Split
from kdcore.inputs import unit

BATCH = 256
"""Samples that are evaluated at once, where nothing else is said: as many as the plan counts memory for."""
BINS = 15


def predict(
    model: nn.Module, split: Split, scale: float, poll: Callable[[], None] = lambda: None, at_once: int = BATCH
) -> Tensor:
    """The logits of a whole split, in eval mode and float32.

    Args:
        model: (B, …) float32 in [0, 1] -> (B, C) logits, on the device of `split`; its mode is left as it was.
        scale: the stored value that stands for 1.0.
        poll: called before each batch; what it raises ends the pass.
        at_once: samples of a batch.

    Returns:
        (N, C) float32 on the CPU.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    logits = []
    try:
        with torch.no_grad():
            for start in range(0, len(split), at_once):
                poll()
                logits.append(model(unit(split.inputs[start : start + at_once], scale)))
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(logits).float().cpu()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest logit is their label's; the first wins a tie."""
    return _share(logits.argmax(1) == labels)


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of samples whose label is among the `k` largest logits; lower classes win ties."""
    of_label = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1]) < labels[:, None]
    ahead = (logits > of_label) | ((logits == of_label) & earlier)
    return _share(ahead.sum(1) < k)


def top_k(classes: int) -> int:
    """The k of the top-k accuracy that is told of so many classes: 5, of few classes one less than there are."""
    return max(1, min(5, classes - 1))


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return F.cross_entropy(logits.double(), labels).item()


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """ECE over `bins` bins of equal width: Σ share of the bin · |accuracy - mean confidence| (Guo et al. 2017).

    The confidence is the largest probability; a bin holds its upper edge, not its lower one.
    """
    confidence, predicted = F.softmax(logits.double(), 1).max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    places = torch.bucketize(confidence, edges)
    surplus = (predicted == labels).double() - confidence
    sums = torch.zeros(bins, dtype=torch.float64).index_add(0, places, surplus)
    return sums.abs().sum().item() / len(labels)


def confusion_matrix(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64 counts: the row is the true class, the column the predicted one."""
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Mean over classes of 2·TP / (2·TP + FP + FN), the largest logit being the decision.

    Classes that no sample has and that is never decided for are left out.
    """
    matrix = confusion_matrix(logits, labels, logits.shape[1])
    shares = matrix.sum(0) + matrix.sum(1)  # predicted and true: 2·TP + FP + FN
    there = shares > 0
    return float((2 * matrix.diagonal()[there].double() / shares[there]).mean())


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Share of samples on which both predict the same class (Stanton et al. 2021)."""
    return _share(student_logits.argmax(1) == teacher_logits.argmax(1))


def predictive_kl(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Mean KL(teacher‖student) at temperature 1, in nats (Stanton et al. 2021)."""
    student = F.log_softmax(student_logits.double(), 1)
    teacher = F.log_softmax(teacher_logits.double(), 1)
    return max(0.0, F.kl_div(student, teacher, reduction="batchmean", log_target=True).item())


def measure(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, Any]:
    """All measures of one model on one split, as JSON values.

    Args:
        logits: (N, C) on the CPU.
        labels: (N,) int64.
        teacher_logits: (N, C); with them, `agreement` and `predictive_kl` are there too.

    Returns:
        `per_class_accuracy` holds none for a class without samples.
    """
    classes = logits.shape[1]
    top = top_k(classes)
    matrix = confusion_matrix(logits, labels, classes)
    right, totals = matrix.diagonal().tolist(), matrix.sum(1).tolist()
    values: dict[str, Any] = {
        "accuracy": accuracy(logits, labels),
        "accuracy_interval": list(wilson_interval(int((logits.argmax(1) == labels).sum()), len(labels))),
        "top_k": top,
        "top_k_accuracy": top_k_accuracy(logits, labels, top),
        "macro_f1": macro_f1(logits, labels),
        "nll": nll(logits, labels),
        "ece": expected_calibration_error(logits, labels),
        "ece_bins": BINS,
    }
    if teacher_logits is not None:
        values["agreement"] = agreement(logits, teacher_logits)
        values["predictive_kl"] = predictive_kl(logits, teacher_logits)
    values["per_class_accuracy"] = [a / b if b else None for a, b in zip(right, totals, strict=True)]
    values["confusion_matrix"] = matrix.tolist()
    return values


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)
