"""Losses on hidden outputs: a value by hand, a slow loop, the minimum, the gradient, the precision, the extremes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcore.losses import (
    attention_transfer,
    factor_transfer,
    flow_of_solution,
    hint,
    knowledge_matching,
    neuron_selectivity,
    similarity_preserving,
    variational_information,
)
from kdcore.losses.neuron_selectivity import AT_ONCE
from kdcore.losses.pooling import pooled_alike

Loss = Callable[[Tensor, Tensor], Tensor]
VARIANCES = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
FUNCTIONS: dict[str, Loss] = {
    "hint": hint,
    "knowledge_matching": lambda s, t: knowledge_matching([s, 2 * s], [t, t]),
    "attention_transfer": attention_transfer,
    "attention_transfer_p1": lambda s, t: attention_transfer(s, t, 1),
    "attention_transfer_p3.5": lambda s, t: attention_transfer(s, t, 3.5),
    "similarity_preserving": similarity_preserving,
    "neuron_selectivity": neuron_selectivity,
    "variational_information": lambda s, t: variational_information(s, t, VARIANCES.to(s.dtype)),
    "flow_of_solution": lambda s, t: flow_of_solution((s, s[:, :2, ::2, ::2]), (t, t[:, :2, ::2, ::2])),
    "factor_transfer": factor_transfer,
}
AT_MINIMUM = [name for name in FUNCTIONS if name not in ("knowledge_matching", "variational_information")]
POOLING = [name for name in AT_MINIMUM if name not in ("similarity_preserving", "flow_of_solution")]
ANY_WIDTH = [name for name in POOLING if name != "hint"] + ["similarity_preserving"]


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


def test_hint_by_hand() -> None:
    # (1 + 4 + 0 + 9) / 4 = 3.5
    assert hint(one([[1.0, 2.0], [3.0, 4.0]]), one([[0.0, 0.0], [3.0, 1.0]])).item() == 3.5
    # The teacher's map of 2x2 is pooled to its mean, 4: (1 - 4)² = 9.
    assert hint(one([[1.0]]), one([[1.0, 3.0], [5.0, 7.0]])).item() == 9.0
    assert hint(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).item() == 2.5


def test_knowledge_matching_by_hand() -> None:
    # 3.5 of the one pair, as above, and 9 of the other.
    maps = ([one([[1.0, 2.0], [3.0, 4.0]]), one([[1.0]])], [one([[0.0, 0.0], [3.0, 1.0]]), one([[4.0]])])
    assert knowledge_matching(*maps).item() == 12.5
    with pytest.raises(ValueError, match="shorter"):
        knowledge_matching(maps[0], maps[1][:1])


def test_attention_transfer_by_hand() -> None:
    # p 2: the student's channels [1, 0] and [1, 0] have mean squares [1, 0], already of length 1; the teacher's one
    # channel [√3, 2] has squares [3, 4], of length 5: [0.6, 0.8]. ((1 - 0.6)² + 0.8²) / 2 = 0.4.
    student, teacher = one([[1.0, 0.0]], [[1.0, 0.0]]), one([[math.sqrt(3.0), -2.0]])
    assert attention_transfer(student, teacher).item() == pytest.approx(0.4)
    # p 1: [3, -4] -> [3, 4] / 5: the same.
    assert attention_transfer(student, one([[3.0, -4.0]]), 1).item() == pytest.approx(0.4)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 4.0])
def test_attention_transfer_where_no_channel_says_anything(p: float) -> None:
    """No NaN comes back from a place, or a whole map, of zeros, as relu leaves them."""
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    student[0], student[1, :, 0, 0], student[1, 0, 1, 1] = 0, 0, 0
    student.requires_grad_()
    attention_transfer(student, teacher, p).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad[0].abs().max() == student.grad[1, :, 0, 0].abs().max() == 0
    assert student.grad[1].abs().max() > 0


def test_similarity_preserving_by_hand() -> None:
    # Two samples. Student [3, 0], [4, 0]: X Xᵀ = [[9, 12], [12, 16]], rows of length 15 and 20: [0.6, 0.8] twice.
    # Teacher orthogonal: the identity. (0.4² + 0.8² + 0.6² + 0.2²) / 4 = 1.2 / 4 = 0.3.
    student, teacher = torch.tensor([[3.0, 0.0], [4.0, 0.0]]), torch.tensor([[0.0, 5.0], [7.0, 0.0]])
    assert similarity_preserving(student, teacher).item() == pytest.approx(0.3)


def test_neuron_selectivity_by_hand() -> None:
    # Student: channels [1, 0], [0, 1]; teacher: one channel [3, 4], normalised [0.6, 0.8].
    # k_tt = 1; mean k_ss = (1 + 0 + 0 + 1) / 4 = 0.5; mean k_st = (0.36 + 0.64) / 2 = 0.5: 1 + 0.5 - 1 = 0.5.
    student, teacher = one([[1.0, 0.0]], [[0.0, 2.0]]), one([[3.0, 4.0]])
    assert neuron_selectivity(student, teacher).item() == pytest.approx(0.5)


def test_variational_information_by_hand() -> None:
    # Channel 1: error 2, σ² 4: 4/4 + ln 4; channel 2: error 0, σ² 1: 0. Half the mean: (1 + 1.3862944)/4 = 0.5965736.
    value = variational_information(one([[3.0]], [[5.0]]), one([[1.0]], [[5.0]]), torch.tensor([4.0, 1.0]))
    assert value.item() == pytest.approx(0.5965736)


def test_flow_of_solution_by_hand() -> None:
    # Student: [1, 3] pooled to [2] where the later map has one place: 2 · 5 = 10. Teacher: mean(1·1, 2·3) = 3.5.
    # (10 - 3.5)² = 42.25.
    value = flow_of_solution((one([[1.0, 3.0]]), one([[5.0]])), (one([[1.0, 2.0]]), one([[1.0, 3.0]])))
    assert value.item() == pytest.approx(42.25)


def test_factor_transfer_by_hand() -> None:
    # The attention maps of above, [1, 0] and [0.6, 0.8]: (0.4 + 0.8) / 2 = 0.6.
    value = factor_transfer(one([[1.0, 0.0]], [[1.0, 0.0]]), one([[math.sqrt(3.0), -2.0]]))
    assert value.item() == pytest.approx(0.6)


# An independent loop over plain numbers.


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in row))
    return [value / length for value in row]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def attention(sample: list[list[float]], p: float) -> list[float]:
    return unit([mean([abs(channel[place]) ** p for channel in sample]) for place in range(len(sample[0]))])


def slow_attention(s: Any, t: Any, p: float, difference: Callable[[float], float]) -> float:
    pairs = zip(s, t, strict=True)
    rows = [zip(attention(a, p), attention(b, p), strict=True) for a, b in pairs]
    return mean([difference(x - y) for row in rows for x, y in row])


def slow_similarity(s: Any, t: Any) -> float:
    def rows(samples: Any) -> list[list[float]]:
        flat = [[value for channel in sample for value in channel] for sample in samples]
        return [unit([sum(x * y for x, y in zip(a, b, strict=True)) for b in flat]) for a in flat]

    both = zip(rows(s), rows(t), strict=True)
    return sum((x - y) ** 2 for a, b in both for x, y in zip(a, b, strict=True)) / len(s) ** 2


def slow_selectivity(s: Any, t: Any) -> float:
    def kernel(a: Any, b: Any) -> float:
        return mean([sum(x * y for x, y in zip(unit(c), unit(d), strict=True)) ** 2
                     for one, other in zip(a, b, strict=True) for c in one for d in other])  # fmt: skip

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def slow_flow(s: Any, t: Any) -> float:
    """Of channels 1 to 3 with channels 1 and 2 of the map at every second place; 6x5 is pooled to 3x3."""

    def matrix(sample: Any) -> list[float]:
        grids = [np.array(channel).reshape(6, 5) for channel in sample]
        # adaptive pooling of 5 columns to 3: columns 0-1, 1-3, 3-4
        small = [np.array([[grid[r : r + 2, a:b].mean() for a, b in ((0, 2), (1, 4), (3, 5))] for r in (0, 2, 4)])
                 for grid in grids]  # fmt: skip
        later = [grid[::2, ::2] for grid in grids[:2]]
        return [float((a * b).mean()) for a in small for b in later]

    return mean([(x - y) ** 2 for a, b in zip(s, t, strict=True) for x, y in zip(matrix(a), matrix(b), strict=True)])


def slow_information(s: Any, t: Any) -> float:
    return mean([((x - y) ** 2 / variance + math.log(variance)) / 2
                 for a, b in zip(s, t, strict=True)
                 for c, d, variance in zip(a, b, VARIANCES.tolist(), strict=True)
                 for x, y in zip(c, d, strict=True)])  # fmt: skip


def slow_hint(s: Any, t: Any, factor: float = 1.0) -> float:
    pairs = zip(np.array(s).flatten().tolist(), np.array(t).flatten().tolist(), strict=True)
    return mean([(factor * x - y) ** 2 for x, y in pairs])


SLOW: dict[str, Callable[[Any, Any], float]] = {
    "hint": slow_hint,
    "knowledge_matching": lambda s, t: slow_hint(s, t) + slow_hint(s, t, 2.0),
    "attention_transfer": lambda s, t: slow_attention(s, t, 2, lambda d: d * d),
    "attention_transfer_p1": lambda s, t: slow_attention(s, t, 1, lambda d: d * d),
    "attention_transfer_p3.5": lambda s, t: slow_attention(s, t, 3.5, lambda d: d * d),
    "similarity_preserving": slow_similarity,
    "neuron_selectivity": slow_selectivity,
    "variational_information": slow_information,
    "flow_of_solution": slow_flow,
    "factor_transfer": lambda s, t: slow_attention(s, t, 2, abs),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_the_slow_loop(name: str) -> None:
    student, teacher = features()
    expected = SLOW[name](student.flatten(2).tolist(), teacher.flatten(2).tolist())
    assert FUNCTIONS[name](student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_neuron_selectivity_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = features(7, 6, 4, 4)
    student.requires_grad_()
    whole = neuron_selectivity(student, teacher)
    (gradient,) = torch.autograd.grad(whole, student)
    for numbers in (1, 2 * 36, 5 * 36):  # one sample at a time, two, five
        monkeypatch.setitem(neuron_selectivity.__globals__, "AT_ONCE", numbers)
        parts = neuron_selectivity(student, teacher)
        assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
        torch.testing.assert_close(torch.autograd.grad(parts, student)[0], gradient)


def test_neuron_selectivity_holds_a_bounded_number_of_products() -> None:
    """What the gradient keeps, of a batch whose products would be 16 times the bound, three kernels of them."""
    student, teacher = torch.randn(64, 1024, 1, 2, requires_grad=True), torch.randn(64, 1024, 1, 2)
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        neuron_selectivity(student, teacher)
    assert sum(kept) < AT_ONCE < 64 * 1024 * 1024 / 15


# The minimum, the gradient, the precision, the extremes.


@pytest.mark.parametrize("name", AT_MINIMUM)
def test_zero_at_equality_with_zero_gradient(name: str) -> None:
    _, teacher = features()
    student = teacher.clone().requires_grad_()
    value = FUNCTIONS[name](student, teacher)
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_knowledge_matching_is_zero_at_equality_with_zero_gradient() -> None:
    _, teacher = features()
    student = teacher.clone().requires_grad_()
    value = knowledge_matching([student, student], [teacher, teacher])
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_variational_information_is_least_at_the_teacher_s_map_and_the_errors_square() -> None:
    student, teacher = features()
    at_teacher = teacher.clone().requires_grad_()
    least = variational_information(at_teacher, teacher, VARIANCES)
    (gradient,) = torch.autograd.grad(least, at_teacher)
    assert gradient.abs().max() == 0
    assert least.item() == pytest.approx(VARIANCES.log().mean().item() / 2)
    best = (student - teacher).square().mean(dim=(0, 2, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(variational_information(student, teacher, best), best)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_the_numerical_one(name: str) -> None:
    student, teacher = features(3, 3, 4, 3)
    assert torch.autograd.gradcheck(lambda s: FUNCTIONS[name](s, teacher), student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
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
    extremes = [torch.zeros(shape), torch.ones(shape), 1e4 * signs, torch.full(shape, 1e4), 1e-20 * signs]
    half = torch.zeros(shape)
    half[:, 1:] = 1e4  # one channel is dead
    for ours in (*extremes, half):
        for theirs in (*extremes, half, ours):
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


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "similarity_preserving"])
def test_twice_the_batch_is_the_same_mean(name: str) -> None:
    student, teacher = features()
    twice = FUNCTIONS[name](student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1))
    assert twice.item() == pytest.approx(FUNCTIONS[name](student, teacher).item(), rel=1e-12)


# Sizes, widths, shapes.


@pytest.mark.parametrize("name", POOLING)
def test_the_larger_map_is_pooled_to_the_smaller_size_first(name: str) -> None:
    """Before any power: each block of 2x2 places becomes its mean; in each direction by itself."""
    large, other = features(2, 3, 4, 4)
    blocks = large.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))
    small = other[:, :, :2, :2]
    assert FUNCTIONS[name](large, small).item() == pytest.approx(FUNCTIONS[name](blocks, small).item(), rel=1e-12)
    assert FUNCTIONS[name](small, large).item() == pytest.approx(FUNCTIONS[name](small, blocks).item(), rel=1e-12)
    wide, tall = large[:, :, :2], other[:, :, :, :2]
    both = wide.unflatten(3, (2, 2)).mean(dim=4), tall.unflatten(2, (2, 2)).mean(dim=3)
    assert FUNCTIONS[name](wide, tall).item() == pytest.approx(FUNCTIONS[name](*both).item(), rel=1e-12)


@pytest.mark.parametrize("name", ANY_WIDTH)
def test_widths_may_differ(name: str) -> None:
    """A teacher with every channel twice teaches the same; for similarities also one of another size."""
    student, teacher = features()
    twice = teacher.repeat(1, 2, 1, 1)
    assert FUNCTIONS[name](student, twice).item() == pytest.approx(FUNCTIONS[name](student, teacher).item(), rel=1e-12)


def test_similarities_take_features_as_they_are() -> None:
    student, teacher = features()
    assert similarity_preserving(student, teacher) == similarity_preserving(student.flatten(1), teacher.flatten(2))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_shapes_that_broadcasting_would_hide(name: str) -> None:
    with pytest.raises(ValueError, match=r"differ in shape|of one batch|flatten"):
        FUNCTIONS[name](torch.zeros(4, 3, 6, 5), torch.zeros(1, 3, 6, 5))
    if name not in ANY_WIDTH:
        with pytest.raises(ValueError, match="differ in shape"):
            FUNCTIONS[name](torch.zeros(4, 3, 6, 5), torch.zeros(4, 1, 6, 5))
    if name not in ("hint", "knowledge_matching", "similarity_preserving"):
        with pytest.raises(ValueError, match=r"maps \(B, C, H, W\) of one batch are compared"):
            FUNCTIONS[name](torch.zeros(4, 3, 6, 5), torch.zeros(4, 3)) if name != "flow_of_solution" else (
                flow_of_solution((torch.zeros(4, 3), torch.zeros(4, 3)), (torch.zeros(4, 3), torch.zeros(4, 3)))
            )


def test_as_many_variances_as_channels() -> None:
    with pytest.raises(ValueError, match="a variance of each of 3 channels is needed"):
        variational_information(*features(), torch.ones(1))


def test_vectors_and_maps_of_one_size_are_not_pooled() -> None:
    student, teacher = features()
    assert pooled_alike(student, teacher) == (student, teacher)
    assert pooled_alike(student.flatten(1), teacher)[0].shape == (4, 90)
