"""Losses whose modules train with the student: a value by hand, a slow loop, the minimum, gradients, extremes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdcore.losses import (
    activation_boundary,
    contrastive,
    hierarchical_context,
    overhaul,
    review,
    semckd,
    simkd,
    singular_value,
    srrl,
)
from kdcore.losses.overhaul import negative_means
from kdcore.losses.singular_value import right_singular

Loss = Callable[[Tensor, Tensor], Tensor]
MARGINS = torch.tensor([-0.3, -1.2, 0.0], dtype=torch.float64)
ATTENTION = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]], dtype=torch.float64)


def two(maps: Tensor) -> list[Tensor]:
    """A map and a later one of 2 channels at every second row."""
    return [maps, maps[:, :2, ::2]]


FUNCTIONS: dict[str, Loss] = {
    "activation_boundary": lambda s, t: activation_boundary(two(s), two(t)),
    "activation_boundary_m0.3": lambda s, t: activation_boundary(two(s), two(t), 0.3),
    "overhaul": lambda s, t: overhaul(two(s), two(t), [MARGINS, MARGINS[:2]]),
    "hierarchical_context": hierarchical_context,
    "review": lambda s, t: review(two(s), two(t)),
    "singular_value": lambda s, t: singular_value(two(s), two(t)),
    "singular_value_2": lambda s, t: singular_value(two(s), two(t), 2),
    "simkd": simkd,
    "semckd": lambda s, t: semckd([s, 2 * s, s, -s], [t] * 4, ATTENTION.to(s).expand(len(s), 2, 2)),
    "srrl": lambda s, t: srrl(s, t, s[:, :, 0, 0], t[:, :, 0, 0]),
}
AT_MINIMUM = ["overhaul", "hierarchical_context", "review", "singular_value", "singular_value_2", "simkd", "srrl"]
POOLING = [name for name in FUNCTIONS if not name.startswith("singular") and name not in ("review", "simkd", "srrl")]


def features(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (4, 3, 6, 5)
    return (
        torch.randn(*shape, generator=generator, dtype=torch.float64),
        torch.randn(*shape, generator=generator, dtype=torch.float64),
    )


def one(*rows: list[list[float]]) -> Tensor:
    """A batch of one map, channel by channel."""
    return torch.tensor([list(rows)], dtype=torch.float64)


# Worked out by hand.


def test_activation_boundary_by_hand() -> None:
    # The last map: 2 is beyond the margin and so is -3; 0.5 where the teacher is on: (0.5 - 1)² = 0.25.
    # The one before: 0.5 where the teacher is off: (0.5 + 1)² = 2.25, halved. 3/1000 · (0.25 + 1.125) = 0.004125.
    student = [one([[0.5]]), one([[2.0, -3.0, 0.5]])]
    teacher = [one([[-1.0]]), one([[1.0, 0.0, 2.0]])]
    assert activation_boundary(student, teacher).item() == pytest.approx(0.004125)
    # With a margin of 3: 2 is 1 short of it, -3 is not, 0.5 is 2.5 short; 3.5 too much before: 1 + 6.25 + 6.125.
    assert activation_boundary(student, teacher, 3.0).item() == pytest.approx(0.003 * 13.375)


def test_overhaul_by_hand() -> None:
    # Margin -1. The last map: where the teacher's -4 becomes -1, -2 is below and nothing is asked; (3 - 1)² = 4;
    # (-0.5 - 0.5)² = 1. The one before: 0 is above -1: 1, halved.
    student = [one([[0.0]]), one([[-2.0, 3.0, -0.5]])]
    teacher = [one([[-4.0]]), one([[-4.0, 1.0, 0.5]])]
    assert overhaul(student, teacher, [torch.tensor([-1.0])] * 2).item() == pytest.approx(5.5)


def test_hierarchical_context_by_hand() -> None:
    # 2x2: MSE 30/4 = 7.5; l = 1: 2.5² = 6.25 at ½. (7.5 + 3.125) / 1.5 = 7.0833333. One place: the MSE alone.
    student = one([[1.0, 2.0], [3.0, 4.0]])
    assert hierarchical_context(student, torch.zeros_like(student)).item() == pytest.approx(7.0833333)
    assert hierarchical_context(student[:, :, 1:, 1:], torch.zeros(1, 1, 1, 1)).item() == 16.0


def test_review_by_hand() -> None:
    # The two of above, a level each.
    levels = [one([[1.0, 2.0], [3.0, 4.0]]), one([[4.0]])]
    assert review(levels, [torch.zeros_like(level) for level in levels]).item() == pytest.approx(23.0833333)


def test_singular_value_by_hand() -> None:
    # Maps of one place have one right singular vector: [1, 0] then [0, 1], the teacher's [0.6, 0.8], [0.8, 0.6].
    # Student: exp(-(a - b)²/8) of a in {0, 1}, b in {1, 0}: e, 1, 1, e with e = exp(-1/8) = 0.8824969.
    # Teacher: differences 0.2, 0, 0, -0.2: 0.9950125, 1, 1, 0.9950125. 2 · (0.9950125 - 0.8824969)² = 0.0253195.
    student = [one([[2.0]], [[0.0]]), one([[0.0]], [[5.0]])]
    teacher = [one([[3.0]], [[4.0]]), one([[8.0]], [[6.0]])]
    assert singular_value(student, teacher).item() == pytest.approx(0.0253195, abs=1e-7)
    # A student's vector takes the sign of the teacher's: its maps' own signs make no difference.
    assert singular_value([-student[0], student[1]], teacher).item() == pytest.approx(0.0253195, abs=1e-7)


def test_contrastive_by_hand() -> None:
    # Noise 1. Student: log odds ln 3 and 0: -ln(3/4) - ln(1/2); teacher: 0 and 0: twice -ln(1/2).
    # 0.2876821 + 3 · 0.6931472 = 2.3671236. With noise 3 the student's are 0 and -ln 3: 0.6931472 - ln(3/4),
    # the teacher's both -ln 3: -ln(1/4) - ln(3/4). 0.9808293 + 1.6739764 = 2.6548057.
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    assert contrastive(student, teacher, 1.0).item() == pytest.approx(2.3671236)
    assert contrastive(student, teacher, 3.0).item() == pytest.approx(2.6548057)


def test_classifier_losses_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    assert simkd(student, teacher).item() == 3.5  # (1 + 4 + 0 + 9) / 4
    assert srrl(student, teacher, torch.tensor([[2.0], [0.0]]), torch.zeros(2, 1)).item() == 5.5  # + (4 + 0) / 2


def test_semckd_by_hand() -> None:
    # One layer of the student and two of the teacher: 0.25 · 1² + 0.75 · 2² = 3.25; with two samples their mean.
    shares = torch.tensor([[[0.25, 0.75]]])
    assert semckd([one([[1.0]]), one([[2.0]])], [one([[0.0]])] * 2, shares).item() == 3.25
    both = [torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1), torch.tensor([2.0, 4.0]).reshape(2, 1, 1, 1)]
    shares = torch.tensor([[[0.25, 0.75]], [[0.5, 0.5]]])
    assert semckd(both, [torch.zeros(2, 1, 1, 1)] * 2, shares).item() == (3.25 + 8) / 2


# An independent loop over plain numbers.


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def flat(maps: Any) -> list[float]:
    return np.array(maps).flatten().tolist()


def slow_squares(s: Any, t: Any, factor: float = 1.0) -> float:
    return mean([(factor * x - y) ** 2 for x, y in zip(flat(s), flat(t), strict=True)])


def slow_boundary(s: Any, t: Any, m: float) -> float:
    total = 0.0
    for w, ours, theirs in ((0.5, s, t), (1.0, s[:, :2, ::2], t[:, :2, ::2])):
        for x, y in zip(flat(ours), flat(theirs), strict=True):
            if x > -m and y <= 0:
                total += w * (x + m) ** 2
            if x <= m and y > 0:
                total += w * (x - m) ** 2
    return 3 * total / (1000 * len(s))


def slow_overhaul(s: Any, t: Any) -> float:
    total = 0.0
    for w, ours, theirs in ((0.5, s, t), (1.0, s[:, :2, ::2], t[:, :2, ::2])):
        for channel, margin in zip(range(ours.shape[1]), MARGINS.tolist(), strict=False):
            for x, y in zip(flat(ours[:, channel]), flat(theirs[:, channel]), strict=True):
                wanted = max(y, margin)
                total += w * (x - wanted) ** 2 if x > wanted or wanted > 0 else 0.0
    return total / len(s)


def slow_context(s: Any, t: Any) -> float:
    """To those of 4x4, 2x2 and 1x1 that are lower, by blocks that overlap where sizes do not divide."""

    def pooled(maps: Any, level: int) -> Any:
        _, _, height, width = maps.shape
        edges = [[(i * n // level, -(-(i + 1) * n // level)) for i in range(level)] for n in (height, width)]
        cells = [[maps[:, :, a:b, c:d].mean(axis=(2, 3)) for c, d in edges[1]] for a, b in edges[0]]
        return np.array(cells)

    parts = [(1.0, slow_squares(s, t))]
    sizes = [size for size in (4, 2, 1) if size < s.shape[2]]
    parts += [(0.5**n, slow_squares(pooled(s, size), pooled(t, size))) for n, size in enumerate(sizes, start=1)]
    return sum(w * value for w, value in parts) / sum(w for w, _ in parts)


def slow_singular(s: Any, t: Any, k: int) -> float:
    total = 0.0
    for a, b in zip(s, t, strict=True):
        levels = []
        for ours, theirs in ((a, b), (a[:2, ::2], b[:2, ::2])):
            found, wanted = (
                np.linalg.svd(maps.reshape(len(maps), -1).T, full_matrices=False) for maps in (ours, theirs)
            )
            scale = wanted[1][:k] / np.linalg.norm(wanted[1][:k])
            pairs = []
            for number, vector in enumerate(wanted[2][:k]):
                cosines = [float(other @ vector) for other in found[2][: k + 3]]
                best = max(range(len(cosines)), key=lambda index: abs(cosines[index]))
                chosen = found[2][best] * (1 if cosines[best] > 0 else -1)
                pairs.append((chosen * scale[number], vector * scale[number]))
            levels.append(pairs)
        for (early, first), (late, last) in zip(*levels, strict=True):
            for x, y in ((x, y) for x in range(2) for y in range(3)):
                kernels = [math.exp(-((p[x] - q[y]) ** 2) / 8) for p, q in ((late, early), (last, first))]
                total += (kernels[0] - kernels[1]) ** 2
    return total / len(s)


SLOW: dict[str, Callable[[Any, Any], float]] = {
    "activation_boundary": lambda s, t: slow_boundary(s, t, 1.0),
    "activation_boundary_m0.3": lambda s, t: slow_boundary(s, t, 0.3),
    "overhaul": slow_overhaul,
    "hierarchical_context": slow_context,
    "review": lambda s, t: slow_context(s, t) + slow_context(s[:, :2, ::2], t[:, :2, ::2]),
    "singular_value": lambda s, t: slow_singular(s, t, 1),
    "singular_value_2": lambda s, t: slow_singular(s, t, 2),
    "simkd": slow_squares,
    "semckd": lambda s, t: (0.25 * slow_squares(s, t) + 0.75 * slow_squares(s, t, 2.0)
                            + 0.5 * slow_squares(s, t) + 0.5 * slow_squares(s, t, -1.0)) / 2,
    "srrl": lambda s, t: slow_squares(s, t) + slow_squares(s[:, :, 0, 0], t[:, :, 0, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_the_slow_loop(name: str) -> None:
    student, teacher = features()
    expected = SLOW[name](student.numpy(), teacher.numpy())
    assert FUNCTIONS[name](student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_contrastive_equals_the_slow_loop() -> None:
    student, teacher = features(3, 6)
    total = 0.0
    for scores in (student.tolist(), teacher.tolist()):
        for row in scores:
            x = [math.exp(value) for value in row]
            total -= math.log(x[0] / (x[0] + 0.4)) + sum(math.log(0.4 / (other + 0.4)) for other in x[1:])
    assert contrastive(student, teacher, 0.4).item() == pytest.approx(total / 3, rel=1e-12)


def test_contrastive_gradient_is_the_numerical_one() -> None:
    student, teacher = features(3, 6)
    assert torch.autograd.gradcheck(lambda *both: contrastive(*both, 0.4), (student.requires_grad_(), teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contrastive_precision(dtype: torch.dtype) -> None:
    student, teacher = (values.to(dtype) for values in features(16, 6))
    value = contrastive(student, teacher, 0.4)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(contrastive(student.double(), teacher.double(), 0.4).item(), rel=1e-5)


def test_contrastive_extremes_and_a_batch_of_one_stay_finite() -> None:
    for value in (0.0, 1e4, -1e4):
        scores = torch.full((1, 3), value, requires_grad=True)
        contrastive(scores, -scores, 0.4).backward()
        assert scores.grad is not None
        assert scores.grad.isfinite().all()


# The minimum, the gradient, the precision, the extremes.


@pytest.mark.parametrize("name", AT_MINIMUM)
def test_zero_at_equality_with_zero_gradient(name: str) -> None:
    _, teacher = features()
    student = teacher.clone().requires_grad_()
    value = FUNCTIONS[name](student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-20)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_activation_boundary_is_zero_beyond_the_margin_on_the_teacher_s_side() -> None:
    _, teacher = features()
    student = torch.where(teacher > 0, 1.0, -1.0).to(teacher).requires_grad_()
    value = activation_boundary([student], [teacher])
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert not student.grad.any()
    assert activation_boundary([student * 0.99], [teacher]) > 0


def test_semckd_is_zero_at_equality_with_zero_gradient() -> None:
    _, teacher = features()
    student = teacher.clone().requires_grad_()
    value = semckd([student] * 4, [teacher] * 4, ATTENTION.expand(len(teacher), 2, 2))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_the_numerical_one(name: str) -> None:
    student, teacher = features(3, 3, 5, 3)
    assert torch.autograd.gradcheck(lambda s: FUNCTIONS[name](s, teacher), student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_precision(name: str, dtype: torch.dtype) -> None:
    # Features are rounded to the type first: what is measured is the arithmetic, in float32 for half precision too.
    student, teacher = (values.to(dtype) for values in features(16, 3, 8, 8))
    value = FUNCTIONS[name](student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(FUNCTIONS[name](student.double(), teacher.double()).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_extremes_and_ties_stay_finite(name: str, size: int, dtype: torch.dtype) -> None:
    shape = (size, 3, 4, 4)
    signs = torch.where(features(*shape)[0] > 0, 1.0, -1.0)
    tied = torch.eye(16)[:3].reshape(1, 3, 4, 4).expand(shape)  # all singular values are equal
    half = torch.zeros(shape)
    half[:, 1:] = 1e4  # one channel is dead
    extremes = [torch.zeros(shape), torch.ones(shape), 1e4 * signs, torch.full(shape, 1e4), 1e-20 * signs, tied, half]
    for ours in extremes:
        for theirs in extremes:
            student = ours.to(dtype).clone().requires_grad_()
            value = FUNCTIONS[name](student, theirs.to(dtype))
            value.backward()
            assert student.grad is not None
            assert torch.isfinite(value)
            assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    student, teacher = (values.requires_grad_() for values in features())
    FUNCTIONS[name](student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_twice_the_batch_is_the_same_mean(name: str) -> None:
    student, teacher = features()
    twice = FUNCTIONS[name](student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1))
    assert twice.item() == pytest.approx(FUNCTIONS[name](student, teacher).item(), rel=1e-12)


# Sizes, widths, shapes.


@pytest.mark.parametrize("name", POOLING)
def test_the_larger_map_is_pooled_to_the_smaller_size_first(name: str) -> None:
    large, other = features(2, 3, 4, 8)
    later = name in ("activation_boundary", "activation_boundary_m0.3", "overhaul")
    single = {"overhaul": lambda s, t: overhaul([s], [t], [MARGINS])}.get(
        name, (lambda s, t: activation_boundary([s], [t])) if later else FUNCTIONS[name]
    )
    blocks = large.unflatten(2, (2, 2)).unflatten(4, (4, 2)).mean(dim=(3, 5))
    small = other[:, :, :2, :4]
    assert single(large, small).item() == pytest.approx(single(blocks, small).item(), rel=1e-12)
    assert single(small, large).item() == pytest.approx(single(small, blocks).item(), rel=1e-12)


def test_singular_vectors_take_maps_of_any_size_as_they_are() -> None:
    """Of the student neither the order of places nor the sign of a map says anything."""
    student, teacher = features()
    wanted = [teacher[:, :, ::2], teacher[:, :2]]
    moved = student.flatten(2).flip(2).reshape(4, 3, 3, 10)
    found = singular_value([moved, -student[:, :2]], wanted)
    assert found.item() == pytest.approx(singular_value([student, student[:, :2]], wanted).item(), rel=1e-9)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_shapes_that_broadcasting_would_hide(name: str) -> None:
    for wrong in (torch.zeros(1, 3, 6, 5), torch.zeros(4, 1, 6, 5)):
        with pytest.raises(ValueError, match=r"differ in shape|of one batch|channels, the teacher's"):
            FUNCTIONS[name](torch.zeros(4, 3, 6, 5), wrong)


def test_counts_that_do_not_fit() -> None:
    maps = list(features())
    for call in (
        lambda: activation_boundary(maps, maps[:1]),
        lambda: overhaul(maps, maps, [torch.zeros(3)]),
        lambda: review(maps, maps[:1]),
        lambda: singular_value(maps, maps[:1] * 3),
        lambda: semckd(maps, maps[:1], torch.ones(4, 1, 2)),
    ):
        with pytest.raises(ValueError, match=r"zip\(\)"):
            call()
    with pytest.raises(ValueError, match="at least 2 are needed, not 1"):
        singular_value(maps[:1], maps[:1])
    with pytest.raises(ValueError, match="differ in shape"):
        semckd(maps, maps, torch.ones(4, 1, 1))
    for scores in (torch.zeros(4, 1), torch.zeros(4, 3, 1), torch.zeros(4)):
        with pytest.raises(ValueError, match=r"no scores \(B, 1 \+ K\)"):
            contrastive(scores, scores, 1.0)


# What they stand on.


@pytest.mark.parametrize(
    ("bias", "weight"), [(0.0, 1.0), (0.0, -2.0), (1.0, 1.0), (-10.0, 1.0), (5.0, 1.0), (-0.3, 0.7), (4.0, 0.5)]
)
def test_margins_are_the_means_of_what_is_negative(bias: float, weight: float) -> None:
    """By numerical integration of the Gaussian, in parts of a ten-thousandth of its standard deviation."""
    places = (np.arange(-600_000, 0) + 0.5) * abs(weight) / 10_000
    places = places + min(0.0, bias)  # what lies between there and 0 is added below
    places = np.concatenate([places, (np.arange(100_000) + 0.5) / 100_000 * min(0.0, bias)])
    steps = np.concatenate([np.full(600_000, abs(weight) / 10_000), np.full(100_000, -min(0.0, bias) / 100_000)])
    density = steps * np.exp(-(((places - bias) / weight) ** 2) / 2 + (max(bias, 0.0) / weight) ** 2 / 2)
    norm = nn.BatchNorm2d(1)
    nn.init.constant_(norm.bias, bias)
    nn.init.constant_(norm.weight, weight)
    assert negative_means(norm).item() == pytest.approx((places * density).sum() / density.sum(), rel=1e-5)


def test_margins_are_finite_and_never_above_zero() -> None:
    values = [-1e4, -1.0, -1e-6, 0.0, 1e-30, 1.0, 37.0, 1e4]
    norm = nn.BatchNorm2d(len(values) ** 2)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([bias for bias in values for _ in values]))
        norm.weight.copy_(torch.tensor(values * len(values)))
    found = negative_means(norm)
    assert found.isfinite().all()
    assert (found <= 0).all()
    assert (found <= norm.bias.clamp(max=0) + 1e-6).all()  # nor above the mean of all


@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (3, 5, 2, 2), (2, 7, 1, 1), (2, 4, 5, 1)])
def test_right_singular_vectors_are_those_of_the_decomposition(shape: tuple[int, ...]) -> None:
    maps, _ = features(*shape)
    for count in (1, 3, 9):
        found = right_singular(maps, count)
        expected = torch.linalg.svd(maps.flatten(2).transpose(1, 2), full_matrices=False).Vh[:, :count].transpose(1, 2)
        assert found.shape == expected.shape
        torch.testing.assert_close((found * expected).sum(dim=1).abs(), torch.ones_like(found[:, 0]))


def test_near_ties_have_a_bounded_gradient_and_a_diverged_student_shows() -> None:
    """1/gap would be 1e12 here; and NaN is told by the value, not by an error of the decomposition."""
    near = torch.zeros(1, 2, 2, 1, dtype=torch.float64)
    near[0, 0, 0, 0], near[0, 1, 1, 0] = 1.0, 1.0 + 1e-12
    near.requires_grad_()
    right_singular(near, 1).sum().backward()
    assert near.grad is not None
    assert near.grad.abs().max() < 1e4
    student, teacher = features()
    student[0, 0, 0, 0] = float("nan")
    assert singular_value(two(student), two(teacher)).isnan()
