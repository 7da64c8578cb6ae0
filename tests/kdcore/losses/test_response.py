"""Losses on logits and labels: a value by hand, a slow loop, the minimum, the gradient, the precision, the extremes."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcore.losses import (
    binary_cross_entropy,
    binary_kd,
    cross_entropy,
    dist,
    dkd,
    hard_distillation,
    jsd,
    kd,
    mse,
    multi_teacher,
    nkd,
)

Loss = Callable[[Tensor, Tensor], Tensor]
Rows = list[list[float]]
LN3 = math.log(3.0)
SHARES = [1.0, 0.0, 4.0]


def labels_for(logits: Tensor) -> Tensor:
    return torch.arange(len(logits)) % logits.shape[1]


def three(teacher: Tensor) -> list[Tensor]:
    """Three teachers made of one."""
    return [teacher, teacher.flip(1), -0.5 * teacher]


TAUGHT: dict[str, Loss] = {
    "hard_distillation": hard_distillation,
    "binary_kd": lambda s, t: binary_kd(s, t, 3.0),
    "jsd": lambda s, t: jsd(s, t, 0.3, 2.0),
    "jsd_forward": lambda s, t: jsd(s, t, 0.0, 2.0),
    "jsd_reverse": lambda s, t: jsd(s, t, 1.0, 2.0),
    "dkd": lambda s, t: dkd(s, t, labels_for(s), 0.7, 3.0, 2.0),
    "dist": lambda s, t: dist(s, t, 0.5, 2.0, 3.0),
    "nkd": lambda s, t: nkd(s, t, labels_for(s), 1.5, 2.0),
    "mean_logits": lambda s, t: multi_teacher(s, three(t), temperature=2.0),
    "mean_probabilities": lambda s, t: multi_teacher(s, three(t), weighting="mean_probabilities", temperature=2.0),
    "weights": lambda s, t: multi_teacher(s, three(t), weighting="weights", weights=SHARES, temperature=2.0),
    "confidence": lambda s, t: multi_teacher(s, three(t), labels_for(s), "confidence", temperature=2.0),
    "one_per_batch": lambda s, t: multi_teacher(s, three(t), weighting="one_per_batch", temperature=2.0, choice=2),
}
LABELLED: dict[str, Loss] = {
    "mse": mse,
    "binary_cross_entropy": lambda s, t: binary_cross_entropy(s, (t > 0).to(t.dtype)),
    "binary_cross_entropy_weighted": lambda s, t: binary_cross_entropy(
        s, (t > 0).to(t.dtype), 3 + torch.arange(s.shape[1])
    ),
}
ALL = {**TAUGHT, **LABELLED}


def logits(batch: int = 5, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, classes, generator=generator, dtype=torch.float64) * 3,
        torch.randn(batch, classes, generator=generator, dtype=torch.float64) * 3,
    )


# Worked out by hand. σ(ln 3) = 3/4, σ(0) = 1/2; softmax([ln 3, 0]) = [3/4, 1/4].


def test_hard_distillation_by_hand() -> None:
    # The teacher says class 0, then class 1: -ln(3/4) = 0.2876821 and -ln(1/2) = 0.6931472; their mean.
    student, teacher = torch.tensor([[LN3, 0.0], [0.0, 0.0]]), torch.tensor([[9.0, 8.0], [0.1, 0.2]])
    assert hard_distillation(student, teacher).item() == pytest.approx(0.4904146, abs=1e-6)


def test_binary_kd_by_hand() -> None:
    # T 2. Class 0: σ(2 ln 3 / 2) = 3/4 against 1/2: 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308120. Class 1: both 1/2, 0.
    # Their mean 0.0654060, times T² = 4.
    value = binary_kd(torch.zeros(1, 2), torch.tensor([[2 * LN3, 0.0]]), temperature=2.0)
    assert value.item() == pytest.approx(0.2616240, abs=1e-6)


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        # p_t = [3/4, 1/4], p_s = [1/2, 1/2], m = [5/8, 3/8]:
        # ½ (3/4 ln(6/5) + 1/4 ln(2/3)) + ½ (1/2 ln(4/5) + 1/2 ln(4/3)) = ½ · 0.0353752 + ½ · 0.0322693
        (0.5, 0.0338222),
        (0.0, 0.1308120),  # KL(p_t ‖ p_s) = 3/4 ln(3/2) + 1/4 ln(1/2)
        (1.0, 0.1438410),  # KL(p_s ‖ p_t) = 1/2 ln(2/3) + 1/2 ln 2
    ],
)
def test_jsd_by_hand(beta: float, expected: float) -> None:
    value = jsd(torch.zeros(1, 2), torch.tensor([[2 * LN3, 0.0]]), beta, temperature=2.0)
    assert value.item() == pytest.approx(4 * expected, abs=1e-6)


def test_dkd_by_hand() -> None:
    # T 1, label 0. The teacher's [ln 6, ln 3, 0] -> [6, 3, 1] / 10, the student's [1, 1, 1] / 3.
    # Label or not: 3/5 ln(9/5) + 2/5 ln(3/5) = 0.1483417. Beside it [3/4, 1/4] and [1/2, 1/2]: 0.1308120.
    # 2 · 0.1483417 + 3 · 0.1308120 = 0.6891195.
    teacher = torch.tensor([[math.log(6), LN3, 0.0]])
    value = dkd(torch.zeros(1, 3), teacher, torch.tensor([0]), alpha=2.0, beta=3.0, temperature=1.0)
    assert value.item() == pytest.approx(0.6891195, abs=1e-6)


def test_dist_by_hand() -> None:
    # Two rows of two: the student's p [3/4, 1/4] and [1/4, 3/4], the teacher's [1/4, 3/4] and [1/5, 4/5].
    # Rows of two correlate with ±1: row 0 rises against falls, -1; row 1 alike, +1; their mean 0. Column 0: student
    # falls, teacher falls, +1; column 1: both rise, +1. T 1: 2 (1 - 0) + 5 (1 - 1) = 2.
    student = torch.tensor([[LN3, 0.0], [0.0, LN3]])
    teacher = torch.tensor([[0.0, LN3], [0.0, math.log(4)]])
    assert dist(student, teacher, beta=2.0, gamma=5.0).item() == pytest.approx(2.0, abs=1e-5)


def test_nkd_by_hand() -> None:
    # Label 0; the teacher's [6, 3, 1] / 10, the student's [1, 1, 1] / 3: -0.6 ln(1/3) = 0.6591674.
    # Beside it, T 1: -(3/4 + 1/4) ln(1/2) = 0.6931472; times γ = 2: 0.6591674 + 1.3862944.
    teacher = torch.tensor([[math.log(6), LN3, 0.0]])
    value = nkd(torch.zeros(1, 3), teacher, torch.tensor([0]), gamma=2.0)
    assert value.item() == pytest.approx(2.0454617, abs=1e-6)


def test_mse_by_hand() -> None:
    # (1 + 4 + 0 + 9) / 4 = 3.5
    student, labels = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    assert mse(student, labels).item() == 3.5
    assert mse(student.flatten(), labels.flatten()).item() == 3.5


def test_binary_cross_entropy_by_hand() -> None:
    # σ: 3/4 where yes, 3/4 where no: (-ln(3/4) - ln(1/4)) / 2 = (0.2876821 + 1.3862944) / 2.
    value = binary_cross_entropy(torch.tensor([[LN3, LN3]]), torch.tensor([[1.0, 0.0]]))
    assert value.item() == pytest.approx(0.8369882, abs=1e-6)
    # The yes of class 0 three times: (3 · 0.2876821 + 1.3862944) / 2.
    value = binary_cross_entropy(torch.tensor([[LN3, LN3]]), torch.tensor([[1.0, 0.0]]), torch.tensor([3.0, 5.0]))
    assert value.item() == pytest.approx(1.1246703, abs=1e-6)


TWO = [torch.tensor([[LN3, 0.0]]), torch.tensor([[0.0, 0.0]])]


@pytest.mark.parametrize(
    ("weighting", "options", "expected"),
    [
        # T 1, the student at [1/2, 1/2], the teachers at [3/4, 1/4] and [1/2, 1/2], so their kd 0.1308120 and 0.
        # Mean logits [ln 3 / 2, 0] -> p = √3 / (1 + √3) = 0.6339746: p ln 2p + (1-p) ln 2(1-p) = 0.0363408.
        ("mean_logits", {}, 0.0363408),
        # Mean probabilities [5/8, 3/8]: 5/8 ln(5/4) + 3/8 ln(3/4) = 0.0315840.
        ("mean_probabilities", {}, 0.0315840),
        # (3 · 0.1308120 + 1 · 0) / 4
        ("weights", {"weights": [3, 1]}, 0.0981090),
        # Label 0: CE = -ln(3/4) and -ln(1/2); softmax of them = [4/3, 2] / (10/3) = [0.4, 0.6]; so w = [0.6, 0.4].
        ("confidence", {"labels": torch.tensor([0])}, 0.0784872),
        ("one_per_batch", {"choice": 0}, 0.1308120),
        ("one_per_batch", {"choice": torch.tensor(1)}, 0.0),
    ],
)
def test_multi_teacher_by_hand(weighting: str, options: dict[str, object], expected: float) -> None:
    value = multi_teacher(torch.zeros(1, 2), TWO, weighting=weighting, temperature=1.0, **options)  # type: ignore
    assert value.item() == pytest.approx(expected, abs=1e-6)


# An independent loop over plain numbers.


def softmax(row: Sequence[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp((value - max(row)) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def without(row: Sequence[float], label: int) -> list[float]:
    rest = [value for place, value in enumerate(row) if place != label]
    return [value / sum(rest) for value in rest]


def slow_dist(student: Rows, teacher: Rows) -> float:
    p_s, p_t = (np.array([softmax(row, 3.0) for row in rows]) for rows in (student, teacher))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p_s.T, p_t.T, strict=True)])
    return float(9 * (0.5 * (1 - rows) + 2.0 * (1 - columns)))


def slow_row(name: str, s: list[float], t: list[float], label: int) -> float:
    """One sample's share of a loss whose batch is averaged."""
    if name == "hard_distillation":
        return -math.log(softmax(s)[t.index(max(t))])
    if name == "binary_kd":
        pairs = [(softmax([a, 0.0], 3.0), softmax([b, 0.0], 3.0)) for a, b in zip(s, t, strict=True)]
        return 9 * sum(divergence(p_t, p_s) for p_s, p_t in pairs) / len(s)
    if name == "mse":
        return sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
    if name.startswith("binary_cross_entropy"):
        factors = [3 + place if name.endswith("weighted") and b > 0 else 1 for place, b in enumerate(t)]
        each = [math.log(softmax([a if b > 0 else -a, 0.0])[0]) for a, b in zip(s, t, strict=True)]
        return -sum(factor * value for factor, value in zip(factors, each, strict=True)) / len(s)
    p_s, p_t = softmax(s, 2.0), softmax(t, 2.0)
    if name.startswith("jsd"):
        mixture = [0.7 * a + 0.3 * b for a, b in zip(p_s, p_t, strict=True)]
        between = 0.3 * divergence(p_t, mixture) + 0.7 * divergence(p_s, mixture)
        return 4 * {"jsd": between, "jsd_forward": divergence(p_t, p_s), "jsd_reverse": divergence(p_s, p_t)}[name]
    if name == "dkd":
        ours, theirs = ([p[label], 1 - p[label]] for p in (p_s, p_t))
        return 4 * (0.7 * divergence(theirs, ours) + 3.0 * divergence(without(p_t, label), without(p_s, label)))
    if name == "nkd":
        beside = zip(without(p_s, label), without(p_t, label), strict=True)
        return -softmax(t)[label] * math.log(softmax(s)[label]) - 1.5 * 4 * sum(b * math.log(a) for a, b in beside)
    return 4 * slow_teachers(name, p_s, [t, t[::-1], [-0.5 * value for value in t]], label)


def slow_teachers(name: str, p_s: list[float], teachers: Rows, label: int) -> float:
    soft = [softmax(row, 2.0) for row in teachers]
    if name == "mean_logits":
        return divergence(softmax([sum(values) / 3 for values in zip(*teachers, strict=True)], 2.0), p_s)
    if name == "mean_probabilities":
        return divergence([sum(values) / 3 for values in zip(*soft, strict=True)], p_s)
    shares = {"weights": [0.2, 0.0, 0.8], "one_per_batch": [0.0, 0.0, 1.0]}.get(name)
    if shares is None:
        errors = [1 / softmax(row)[label] for row in teachers]  # exp of the cross-entropy
        shares = [(1 - error / sum(errors)) / 2 for error in errors]
    return sum(share * divergence(row, p_s) for share, row in zip(shares, soft, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_equals_the_slow_loop(name: str) -> None:
    student, teacher = logits()
    rows = list(zip(student.tolist(), teacher.tolist(), labels_for(student).tolist(), strict=True))
    if name == "dist":
        expected = slow_dist(student.tolist(), teacher.tolist())
    else:
        expected = sum(slow_row(name, *row) for row in rows) / len(rows)
    assert ALL[name](student, teacher).item() == pytest.approx(expected, rel=1e-12)


# Zero, or the minimum, at equality.

ALIKE: dict[str, Loss] = {
    **{name: TAUGHT[name] for name in ("binary_kd", "jsd", "jsd_forward", "jsd_reverse", "dkd", "dist")},
    "mse": mse,
    "mean_logits": lambda s, t: multi_teacher(s, [t, t]),
    "mean_probabilities": lambda s, t: multi_teacher(s, [t, t], weighting="mean_probabilities"),
    "weights": lambda s, t: multi_teacher(s, [t, t], weighting="weights", weights=[1, 2]),
    "confidence": lambda s, t: multi_teacher(s, [t, t], labels_for(s), "confidence"),
    "one_per_batch": lambda s, t: multi_teacher(s, [t, t], weighting="one_per_batch", choice=1),
    "binary_cross_entropy": lambda s, t: binary_cross_entropy(s, t.sigmoid()),
    "nkd_beside_the_label": lambda s, t: nkd(s, t, labels_for(s), 1.0, 2.0) - nkd(s, t, labels_for(s), 0.0),
}
CROSS_ENTROPIES = ("binary_cross_entropy", "nkd_beside_the_label")


@pytest.mark.parametrize("name", ALIKE)
def test_least_at_equality_with_zero_gradient(name: str) -> None:
    other, teacher = logits()
    student = teacher.clone().requires_grad_()
    value = ALIKE[name](student, teacher)
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    assert name in CROSS_ENTROPIES or abs(value.item()) < 1e-14
    assert value < ALIKE[name](teacher + 0.1 * other, teacher)


# Gradients, precision, extremes.


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_the_numerical_one(name: str) -> None:
    student, teacher = logits(3, 4)
    assert torch.autograd.gradcheck(lambda s: ALL[name](s, teacher), student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_precision(name: str, dtype: torch.dtype) -> None:
    # Logits are rounded to the type first: what is measured is the arithmetic, which is float32 for bf16 too.
    student, teacher = (values.to(dtype) for values in logits(64, 10))
    value = ALL[name](student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(ALL[name](student.double(), teacher.double()).item(), rel=1e-5)


WILD: list[tuple[Rows, Rows]] = [
    ([[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]),
    ([[1e4, 1e4, 1e4]], [[-1e4, -1e4, -1e4]]),
    ([[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]),
    ([[1e4, -1e4, 0.0]], [[0.0, 0.0, 0.0]]),
    ([[0.0, 0.0, 0.0]], [[1e4, -1e4, 0.0]]),
    ([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [1e4, 1e4, -1e4], [-1e4, 1e4, 0.0]]),
    ([[30.0, -30.0, 0.0], [30.0, -30.0, 0.0]], [[-30.0, 30.0, 0.0], [-30.0, 30.0, 0.0]]),
    ([[0.0, 0.0, 0.0], [1e-7, 0.0, 0.0]], [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_extremes_ties_and_a_batch_of_one_stay_finite(name: str, dtype: torch.dtype) -> None:
    for student, teacher in WILD:
        ours = torch.tensor(student, dtype=dtype, requires_grad=True)
        value = ALL[name](ours, torch.tensor(teacher, dtype=dtype))
        value.backward()
        assert ours.grad is not None
        assert torch.isfinite(value), (student, teacher)
        assert torch.isfinite(ours.grad).all(), (student, teacher)
        assert value.item() > -1e-5, (student, teacher)


@pytest.mark.parametrize("name", TAUGHT)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    student, teacher = (values.requires_grad_() for values in logits())
    TAUGHT[name](student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (4, 2)])
def test_shapes_that_broadcasting_would_hide(name: str, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        ALL[name](torch.zeros(4, 3), torch.zeros(shape))


@pytest.mark.parametrize("name", [name for name in ALL if name != "dist"])
def test_twice_the_batch_is_the_same_mean(name: str) -> None:
    student, teacher = logits(4, 4)  # the labels repeat after four
    twice = ALL[name](student.repeat(2, 1), teacher.repeat(2, 1))
    assert twice.item() == pytest.approx(ALL[name](student, teacher).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [dkd, nkd])
def test_labels_must_be_one_class_per_row_of_two_or_more(loss: Callable[..., Tensor]) -> None:
    for labels in (torch.tensor([0]), torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match="not one class for each"):
            loss(torch.zeros(4, 3), torch.zeros(4, 3), labels)
    with pytest.raises(ValueError, match="two are needed"):
        loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 0]))
    value = loss(torch.zeros(1, 2, requires_grad=True), torch.tensor([[5.0, 1.0]]), torch.tensor([1]))
    assert math.isfinite(value.item())


# What ties one loss to another.


def test_hard_distillation_is_cross_entropy_on_decisions() -> None:
    student, teacher = logits()
    assert hard_distillation(student, teacher) == cross_entropy(student, teacher.argmax(1))
    assert hard_distillation(student, teacher) == hard_distillation(student, 100 * teacher + 3)


def test_jsd_ends_are_the_two_divergences_and_its_middle_is_symmetric_and_bounded() -> None:
    student, teacher = logits()
    assert jsd(student, teacher, 0.0, 3.0).item() == pytest.approx(kd(student, teacher, 3.0).item(), rel=1e-12)
    assert jsd(student, teacher, 1.0, 3.0).item() == pytest.approx(kd(teacher, student, 3.0).item(), rel=1e-12)
    assert jsd(student, teacher).item() == pytest.approx(jsd(teacher, student).item(), rel=1e-12)
    apart = jsd(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]]))
    assert apart.item() == pytest.approx(math.log(2), rel=1e-6)
    for beta in (-0.1, 1.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            jsd(student, teacher, beta)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_dkd_with_the_others_weighed_by_what_the_teacher_leaves_them(temperature: float) -> None:
    for student, teacher in zip(*(values.split(1) for values in logits()), strict=True):
        left = 1 - (teacher / temperature).softmax(1)[0, 2].item()
        value = dkd(student, teacher, torch.tensor([2]), 1.0, left, temperature)
        assert value.item() == pytest.approx(kd(student, teacher, temperature).item(), rel=1e-10)


def test_dkd_and_nkd_leave_the_label_out_however_large_its_logit_is() -> None:
    # A mask that only subtracts 1000 from the label's logit fails here: beside it the divergence would be 0.
    student, teacher = torch.tensor([[5000.0, 0.0, 0.0]]), torch.tensor([[5000.0, LN3, 0.0]])
    label = torch.tensor([0])
    assert dkd(student, teacher, label, 0.0, 1.0, 1.0).item() == pytest.approx(0.1308120, abs=1e-6)
    assert nkd(student, teacher, label, 1.0).item() == pytest.approx(math.log(2), abs=1e-6)


def test_dist_does_not_see_the_scale_of_a_small_class() -> None:
    # Column 2 holds probabilities near e^-40, whose squares float32 rounds to 0; correlation still sees their course.
    drift = torch.tensor([[0.0], [1.0], [2.0], [0.5]])
    student = torch.cat([torch.zeros(4, 2), drift - 40], dim=1)
    teacher = torch.cat([torch.zeros(4, 2), drift - 45], dim=1)
    # Columns 0 and 1 of both sides are constant, column 2 correlates fully: 1 - 1/3.
    assert dist(student, teacher, beta=0.0).item() == pytest.approx(2 / 3, abs=1e-5)


def test_dist_of_what_does_not_vary_is_one_without_gradient() -> None:
    _, teacher = logits(4, 3)
    student = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    value = dist(student, teacher)
    value.backward()
    assert value.item() == 2.0
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    alone = dist(teacher[:1], teacher[:1])  # columns of one sample do not vary, its row is equal
    assert alone.item() == pytest.approx(1.0, abs=1e-12)


# Several teachers.


def test_averaging_logits_is_not_averaging_probabilities() -> None:
    student = torch.zeros(1, 2)
    teachers = [torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    logits_mean, probabilities_mean = (
        multi_teacher(student, teachers, weighting=weighting, temperature=1.0)  # type: ignore[arg-type]
        for weighting in ("mean_logits", "mean_probabilities")
    )
    # Mean logits [4, 1]: p = 0.9525741; mean of 0.9996646 and 0.1192029: 0.5594338.
    expected = [p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)) for p in (0.9525741, 0.5594338)]
    assert [logits_mean.item(), probabilities_mean.item()] == pytest.approx(expected, abs=1e-6)


def test_equal_weights_have_the_gradient_of_the_mean_of_probabilities() -> None:
    student, teacher = logits()
    student.requires_grad_()
    values = [
        multi_teacher(student, three(teacher), weighting="mean_probabilities"),
        multi_teacher(student, three(teacher), weighting="weights", weights=[2, 2, 2]),
    ]
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert values[1] > values[0]  # by the teachers' disagreement


def test_the_teacher_that_knows_the_label_counts_more_and_a_hopeless_one_nothing() -> None:
    right, wrong = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    student = torch.tensor([[1.0, 0.0]])
    value = multi_teacher(student, [right, wrong], torch.tensor([0]), "confidence")
    assert value.item() == pytest.approx(kd(student, right).item(), rel=1e-6)


def test_what_several_teachers_cannot_be() -> None:
    student = torch.zeros(2, 3)
    both = [torch.zeros(2, 3), torch.ones(2, 3)]
    cases: list[tuple[str, list[Tensor], dict[str, object]]] = [
        ("two teachers or more, not 1; kd takes one", both[:1], {}),
        ("two teachers or more, not 0", [], {}),
        ("unknown weighting 'median'; there are: mean_logits", both, {"weighting": "median"}),
        ("needs labels", both, {"weighting": "confidence"}),
        ("not one class for each", both, {"weighting": "confidence", "labels": torch.zeros(2, 3)}),
        ("0 weights are given; give one for each of the 2 teachers", both, {"weighting": "weights"}),
        ("3 weights are given", both, {"weighting": "weights", "weights": SHARES}),
        ("one of them above 0", both, {"weighting": "weights", "weights": [0.0, 0.0]}),
        ("at least 0", both, {"weighting": "weights", "weights": [2.0, -1.0]}),
        ("not for 'mean_logits'", both, {"weights": [1.0, 1.0]}),
        ("differ in shape", [both[0], torch.zeros(1, 3)], {}),
    ]
    for message, teachers, options in cases:
        with pytest.raises(ValueError, match=message):
            multi_teacher(student, teachers, **options)  # type: ignore[arg-type]
