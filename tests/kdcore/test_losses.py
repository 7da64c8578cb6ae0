"""Every loss: a value by hand, a slow loop, its minimum, its gradient, its precision, its extremes."""

import math

import pytest
import torch
from torch import Tensor

from kdcore.losses import (
    Batch,
    Context,
    CrossEntropyConfig,
    KDConfig,
    LogitMSEConfig,
    LossError,
    SoftCrossEntropyConfig,
    cross_entropy,
    default_losses,
    kd,
    logit_mse,
    soft_cross_entropy,
)

DISTILLING = {
    "kd": lambda s, t: kd(s, t, 4.0),
    "kd_standardized": lambda s, t: kd(s, t, 2.0, standardize=True),
    "soft_cross_entropy": lambda s, t: soft_cross_entropy(s, t, 3.0),
    "logit_mse": logit_mse,
}
ALL = {
    **DISTILLING,
    "cross_entropy": lambda s, t: cross_entropy(s, t.argmax(1)),
    "cross_entropy_smoothed": lambda s, t: cross_entropy(s, t.argmax(1), 0.1),
}
LN3 = math.log(3.0)


def logits(batch: int = 5, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, classes, generator=generator, dtype=torch.float64) * 3,
        torch.randn(batch, classes, generator=generator, dtype=torch.float64) * 3,
    )


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def z_scored(row: list[float]) -> list[float]:
    mean = sum(row) / len(row)
    std = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
    return [(value - mean) / (std + 1e-7) for value in row]


# Worked out by hand. softmax([ln 3, 0]) = [3/4, 1/4]; softmax([0, 0]) = [1/2, 1/2].


def test_cross_entropy_by_hand() -> None:
    # -ln(3/4) = 0.287682 and -ln(1/2) = 0.693147; their mean is 0.4904146.
    student = torch.tensor([[LN3, 0.0], [0.0, 0.0]])
    assert cross_entropy(student, torch.tensor([0, 1])).item() == pytest.approx(0.4904146, abs=1e-6)


def test_cross_entropy_smoothing_by_hand() -> None:
    # Smoothing 0.2 over two classes makes the target [0.9, 0.1]:
    # -(0.9 ln(3/4) + 0.1 ln(1/4)) = 0.9 * 0.2876821 + 0.1 * 1.3862944 = 0.3975433.
    value = cross_entropy(torch.tensor([[LN3, 0.0]]), torch.tensor([0]), label_smoothing=0.2)
    assert value.item() == pytest.approx(0.3975433, abs=1e-6)


def test_kd_by_hand() -> None:
    # T 2: the teacher's [2 ln 3, 0] / 2 = [ln 3, 0] -> [3/4, 1/4], the student's [0, 0] -> [1/2, 1/2].
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.3040988 - 0.1732868 = 0.1308120; times T² = 4: 0.5232481.
    value = kd(torch.zeros(1, 2), torch.tensor([[2 * LN3, 0.0]]), temperature=2.0)
    assert value.item() == pytest.approx(0.5232481, abs=1e-6)


def test_kd_standardized_by_hand() -> None:
    # Rows of two standardise to [1, -1]/√2 = [0.7071068, -0.7071068] (unbiased std of [a, -a] is a √2), whatever
    # their scale, and reversed for the student. T 1: the teacher's gap is √2, p = 1/(1 + e^-√2) = 0.8044297, the
    # student's 0.1955703. KL = (p - (1-p)) ln(p/(1-p)) = 0.6088593 * 1.4142136 = 0.8610571.
    value = kd(torch.tensor([[-5.0, 3.0]]), torch.tensor([[20.0, 10.0]]), temperature=1.0, standardize=True)
    assert value.item() == pytest.approx(0.8610571, abs=1e-6)


def test_soft_cross_entropy_by_hand() -> None:
    # T 2: p_t = [3/4, 1/4], p_s = [1/2, 1/2]: -ln(1/2) = 0.6931472; times T² = 4: 2.7725887.
    value = soft_cross_entropy(torch.zeros(1, 2), torch.tensor([[2 * LN3, 0.0]]), temperature=2.0)
    assert value.item() == pytest.approx(2.7725887, abs=1e-6)


def test_logit_mse_by_hand() -> None:
    # (1 + 4 + 0 + 9) / 4 = 3.5
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    assert logit_mse(student, teacher).item() == 3.5


# An independent loop over plain numbers.


def slow(name: str, student: list[list[float]], teacher: list[list[float]]) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        label = t.index(max(t))
        if name == "logit_mse":
            total += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
        elif name == "cross_entropy":
            total -= math.log(softmax(s)[label])
        elif name == "cross_entropy_smoothed":
            target = [0.1 / len(s) + 0.9 * (index == label) for index in range(len(s))]
            total -= sum(p * math.log(q) for p, q in zip(target, softmax(s), strict=True))
        else:
            temperature = {"kd": 4.0, "kd_standardized": 2.0, "soft_cross_entropy": 3.0}[name]
            if name == "kd_standardized":
                s, t = z_scored(s), z_scored(t)
            p_s, p_t = (softmax([value / temperature for value in row]) for row in (s, t))
            entropy = 0.0 if name == "soft_cross_entropy" else sum(p * math.log(p) for p in p_t)
            total += temperature**2 * (entropy - sum(p * math.log(q) for p, q in zip(p_t, p_s, strict=True)))
    return total / len(student)


@pytest.mark.parametrize("name", ALL)
def test_equals_the_slow_loop(name: str) -> None:
    student, teacher = logits()
    expected = slow(name, student.tolist(), teacher.tolist())
    assert ALL[name](student, teacher).item() == pytest.approx(expected, rel=1e-12)


# Zero, or the minimum, at equality.


@pytest.mark.parametrize("name", ["kd", "kd_standardized", "logit_mse"])
def test_zero_at_equality_with_zero_gradient(name: str) -> None:
    _, teacher = logits()
    student = teacher.clone().requires_grad_()
    value = DISTILLING[name](student, teacher)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_soft_cross_entropy_is_least_at_equality() -> None:
    other, teacher = logits()
    student = teacher.clone().requires_grad_()
    value = soft_cross_entropy(student, teacher, 3.0)
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    assert value < soft_cross_entropy(teacher + 0.1 * other, teacher, 3.0)


def test_cross_entropy_is_least_where_the_probabilities_are_the_smoothed_labels() -> None:
    labels = torch.tensor([2, 0])
    target = torch.full((2, 4), 0.05, dtype=torch.float64)
    target[torch.arange(2), labels] = 0.85  # smoothing 0.2 over 4 classes: 0.8 + 0.05
    student = target.log().requires_grad_()
    value = cross_entropy(student, labels, 0.2)
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    assert value < cross_entropy(student + torch.tensor([0.1, 0.0, 0.0, 0.0]), labels, 0.2)


# Gradients, precision, extremes.


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_the_numerical_one(name: str) -> None:
    student, teacher = logits(3, 4)
    assert torch.autograd.gradcheck(lambda s: ALL[name](s, teacher), student.requires_grad_())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("name", ALL)
def test_precision(name: str, dtype: torch.dtype, tolerance: float) -> None:
    # Logits are rounded to the type first: what is measured is the arithmetic, which is float32 for bf16 too.
    student, teacher = (values.to(dtype) for values in logits(64, 10))
    value = ALL[name](student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(ALL[name](student.double(), teacher.double()).item(), rel=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_bf16_logits_cost_little(name: str) -> None:
    # bf16 keeps 8 bits: logits of size 3 are off by up to 2^-9 * 4, the mean over 640 of them by far less.
    student, teacher = logits(64, 10)
    rounded = ALL[name](student.bfloat16(), teacher.bfloat16()).item()
    assert rounded == pytest.approx(ALL[name](student, teacher).item(), rel=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]),
        ([[1e4, 1e4, 1e4]], [[-1e4, -1e4, -1e4]]),
        ([[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]),
        ([[1e4, -1e4, 0.0]], [[0.0, 0.0, 0.0]]),
        ([[0.0, 0.0, 0.0]], [[1e4, -1e4, 0.0]]),
    ],
)
def test_extremes_and_ties_stay_finite(
    name: str, dtype: torch.dtype, student: list[list[float]], teacher: list[list[float]]
) -> None:
    ours = torch.tensor(student, dtype=dtype, requires_grad=True)  # a batch of one, too
    value = ALL[name](ours, torch.tensor(teacher, dtype=dtype))
    value.backward()
    assert ours.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(ours.grad).all()


# The mistakes this field keeps making.


@pytest.mark.parametrize("name", ALL)
def test_twice_the_batch_is_the_same_mean(name: str) -> None:
    student, teacher = logits()
    twice = ALL[name](student.repeat(2, 1), teacher.repeat(2, 1))
    assert twice.item() == pytest.approx(ALL[name](student, teacher).item(), rel=1e-12)


def test_kd_divides_by_the_batch_and_not_by_batch_times_classes() -> None:
    student, teacher = logits(5, 7)
    p_t, p_s = teacher.softmax(1), student.softmax(1)
    total = (p_t * (p_t.log() - p_s.log())).sum().item()
    assert kd(student, teacher, 1.0).item() == pytest.approx(total / 5, rel=1e-12)
    assert kd(student, teacher, 1.0).item() != pytest.approx(total / 35, rel=0.5)


def test_kd_divergence_is_of_the_student_from_the_teacher() -> None:
    # KL([3/4, 1/4] || [1/2, 1/2]) = 0.1308120; the other way round it would be 0.1438410.
    assert kd(torch.zeros(1, 2), torch.tensor([[LN3, 0.0]]), 1.0).item() == pytest.approx(0.1308120, abs=1e-6)


def test_gradients_keep_their_size_as_the_temperature_grows() -> None:
    # With T² the gradient tends to (z_s - z_t, both centred) / (B·C) as T grows; without, to zero.
    student, teacher = logits()
    student.requires_grad_()
    for loss in (kd, soft_cross_entropy):
        (gradient,) = torch.autograd.grad(loss(student, teacher, 1e4), student)
        difference = student.detach() - teacher
        limit = (difference - difference.mean(1, keepdim=True)) / difference.numel()
        torch.testing.assert_close(gradient, limit, rtol=1e-2, atol=1e-4)


def test_kd_and_soft_cross_entropy_have_one_gradient() -> None:
    student, teacher = logits()
    student.requires_grad_()
    (a,) = torch.autograd.grad(kd(student, teacher, 5.0), student)
    (b,) = torch.autograd.grad(soft_cross_entropy(student, teacher, 5.0), student)
    torch.testing.assert_close(a, b)


def test_standardize_forgets_shift_and_scale() -> None:
    student, teacher = logits()
    assert kd(3 * student + 5, teacher, 2.0, standardize=True).item() == pytest.approx(
        kd(student, 0.5 * teacher - 2, 2.0, standardize=True).item(), rel=1e-5
    )


@pytest.mark.parametrize("name", DISTILLING)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    student, teacher = (values.requires_grad_() for values in logits())
    DISTILLING[name](student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("name", DISTILLING)
def test_shapes_that_broadcasting_would_hide(name: str) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        DISTILLING[name](torch.zeros(4, 3), torch.zeros(1, 3))


# Terms.

VIEWS = {"hidden_1": (6,), "conv_1": (4, 2, 2), "logits": (3,)}


def batch(student: dict[str, Tensor], teacher: dict[str, Tensor], labels: Tensor | None = None) -> Batch:
    size = len(student["logits"])
    return Batch(student, [teacher], labels, indices=torch.arange(size), inputs=torch.zeros(size, 1))


@pytest.mark.parametrize(
    "config",
    [CrossEntropyConfig(), KDConfig(), SoftCrossEntropyConfig(), LogitMSEConfig()],
    ids=lambda config: config.type,
)
def test_term_is_its_function(config: KDConfig) -> None:
    student, teacher = logits(5, 3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    term = config.build(Context({"logits": (3,)}, [{"logits": (3,)}], classes=3))
    function = {"cross_entropy": cross_entropy, "kd": kd, "soft_cross_entropy": soft_cross_entropy}
    expected = (
        cross_entropy(student, labels)
        if config.type == "cross_entropy"
        else function.get(config.type, logit_mse)(student, teacher)
    )
    assert term(batch({"logits": student}, {"logits": teacher}, labels)) == expected


def test_terms_use_their_settings() -> None:
    student, teacher = logits(5, 3)
    labels = torch.tensor([0, 1, 2, 0, 1])
    views = ({"hidden_1": student, "logits": 9 * student}, {"other": teacher, "logits": 7 * teacher})
    shapes = ({"hidden_1": (3,), "logits": (3,)}, {"other": (3,), "logits": (3,)})
    layers = {"student_layer": "hidden_1", "teacher_layer": "other"}
    for config, expected in [
        (KDConfig(temperature=7, standardize=True, **layers), kd(student, teacher, 7, True)),
        (SoftCrossEntropyConfig(temperature=7, **layers), soft_cross_entropy(student, teacher, 7)),
        (LogitMSEConfig(**layers), logit_mse(student, teacher)),
        (CrossEntropyConfig(label_smoothing=0.3, student_layer="hidden_1"), cross_entropy(student, labels, 0.3)),
    ]:
        assert config.build(Context(shapes[0], [shapes[1]], classes=3))(batch(*views, labels)) == expected


@pytest.mark.parametrize("loss", [KDConfig, SoftCrossEntropyConfig, LogitMSEConfig])
def test_what_cannot_be_built(loss: type[KDConfig]) -> None:
    cases = [
        (loss(student_layer="fc"), VIEWS, "student_layer", "no layer 'fc'; it has 'hidden_1', 'conv_1', 'logits'"),
        (loss(teacher_layer="fc"), VIEWS, "teacher_layer", "the teacher has no layer 'fc'"),
        (loss(student_layer="conv_1"), VIEWS, "student_layer", "logits are a vector; its vectors are 'hidden_1'"),
        (
            loss(teacher_layer="hidden_1"),
            VIEWS,
            "teacher_layer",
            "'logits' has 3 classes, the teacher's 'hidden_1' has 6",
        ),
        (loss(), {}, "type", "needs a teacher"),
    ]
    for config, teacher, field, message in cases:
        with pytest.raises(LossError, match=message) as caught:
            config.build(Context(VIEWS, [teacher] if teacher else [], classes=3))
        assert caught.value.field == field


def test_cross_entropy_needs_one_output_per_class() -> None:
    with pytest.raises(LossError, match="'logits' has 3 outputs, the data has 10 classes"):
        CrossEntropyConfig().build(Context(VIEWS, classes=10))
    assert CrossEntropyConfig(student_layer="hidden_1").build(Context(VIEWS, classes=6)) is not None


def test_default_losses_are_hintons_with_the_cifar_weights() -> None:
    label, soft = default_losses()
    assert isinstance(label, CrossEntropyConfig)
    assert isinstance(soft, KDConfig)
    assert (label.weight, soft.weight, soft.temperature) == (0.1, 0.9, 4.0)
