"""Measures against values worked out by hand and against slow independent implementations."""

import math
import random

import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from kdcore.compare import bootstrap_interval, gain, mcnemar
from kdcore.data import Split
from kdcore.evaluate import (
    accuracy,
    agreement,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    measure,
    nll,
    predict,
    predictive_kl,
    top_k_accuracy,
)

LN = math.log


def logits_of(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def noise(samples: int, classes: int, seed: int) -> Tensor:
    return torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed)) * 2


def test_values_worked_out_by_hand() -> None:
    logits = logits_of([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1]])
    labels = torch.tensor([0, 1, 0, 1])
    assert accuracy(logits, labels) == 0.5
    assert top_k_accuracy(logits, labels, 2) == 1.0  # the third ties with class 1 and comes first
    assert nll(logits, labels) == pytest.approx(-(LN(0.5) + LN(0.8) + LN(0.2) + LN(0.3)) / 4)
    assert confusion_matrix(logits, labels, 3).tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_calibration_error_by_hand() -> None:
    # Confidences 0.9, 0.92 (bin 14), 0.55 (bin 9); right, wrong, right.
    logits = logits_of([[0.9, 0.1], [0.92, 0.08], [0.45, 0.55]])
    labels = torch.tensor([0, 1, 1])
    expected = 2 / 3 * abs(0.5 - 0.91) + 1 / 3 * abs(1 - 0.55)
    assert expected_calibration_error(logits, labels) == pytest.approx(expected)


def test_calibration_error_against_a_slow_one() -> None:
    logits, labels = noise(500, 4, 0).double(), torch.randint(0, 4, (500,), generator=torch.Generator().manual_seed(1))
    rows = [
        (max(p), p.index(max(p)) == label) for p, label in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True)
    ]
    slow = 0.0
    for number in range(15):
        held = [(c, hit) for c, hit in rows if number / 15 < c <= (number + 1) / 15]
        if held:
            slow += len(held) / 500 * abs(sum(h for _, h in held) / len(held) - sum(c for c, _ in held) / len(held))
    assert expected_calibration_error(logits, labels) == pytest.approx(slow)


def test_bins_hold_their_upper_edge() -> None:
    one_class_certain = torch.tensor([[0.0, -1000.0]])
    assert expected_calibration_error(one_class_certain, torch.tensor([0])) == 0.0
    assert expected_calibration_error(one_class_certain, torch.tensor([1])) == 1.0


def test_top_k_against_sorting() -> None:
    logits, labels = noise(200, 7, 2), torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(3))
    for k in (1, 3, 7):
        slow = sum(
            label in sorted(range(7), key=lambda c: (-row[c], c))[:k]
            for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
        )
        assert top_k_accuracy(logits, labels, k) == slow / 200


def test_predictive_kl_by_hand_and_its_direction() -> None:
    teacher, student = logits_of([[0.5, 0.5], [0.5, 0.5]]), logits_of([[0.75, 0.25], [0.5, 0.5]])
    # KL(teacher || student) of the first sample is 0.5 ln(0.5/0.75) + 0.5 ln(0.5/0.25), the second's is 0.
    assert predictive_kl(student, teacher) == pytest.approx((0.5 * LN(2 / 3) + 0.5 * LN(2)) / 2)
    assert predictive_kl(student, teacher) != pytest.approx(predictive_kl(teacher, student))
    assert predictive_kl(teacher, teacher) == 0.0
    assert agreement(torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[2.0, 0], [3, 1]])) == 0.5


def test_measure_is_finite_json_with_an_empty_class() -> None:
    logits, labels = noise(50, 3, 4), torch.zeros(50, dtype=torch.int64)
    values = measure(logits, labels, logits)
    assert values["per_class_accuracy"][1:] == [None, None]
    assert values["per_class_accuracy"][0] == values["accuracy"]
    assert values["agreement"] == 1.0
    assert values["top_k"] == 2
    assert "agreement" not in measure(logits, labels)
    assert measure(noise(5, 2, 0), torch.zeros(5, dtype=torch.int64))["top_k"] == 1


def test_predict_is_one_pass_in_eval_mode_that_leaves_the_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = Split(torch.randint(0, 17, (600, 1, 2, 2), dtype=torch.uint8), torch.zeros(600, dtype=torch.int64))
    polls: list[int] = []
    found = predict(model, split, 16.0, lambda: polls.append(1))
    assert found.shape == (600, 3)
    assert len(polls) == 3
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.allclose(found, model.eval()(split.inputs / 16).detach(), atol=1e-6)


def test_macro_f1_by_hand_and_against_another() -> None:
    # Class 0: 2 hits, 1 missed: 4/5. Class 1: 1 hit, 1 false: 2/3. Class 2 is neither there nor predicted.
    logits = torch.eye(3)[[0, 0, 1, 1]]
    assert macro_f1(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx((4 / 5 + 2 / 3) / 2)
    logits, labels = noise(300, 6, 0), torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(1))
    expected = f1_score(labels.numpy(), logits.argmax(1).numpy(), average="macro")
    assert macro_f1(logits, labels) == pytest.approx(expected)
    assert measure(logits, labels)["macro_f1"] == macro_f1(logits, labels)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(2, 8) == mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(1, 2) == 1.0


def test_mcnemar_against_exact_integers_and_where_numbers_are_large() -> None:
    for b, c in ((3, 17), (40, 61), (480, 520)):
        exact = 2 * sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
        assert mcnemar(b, c) == pytest.approx(exact, rel=1e-9)
    assert mcnemar(0, 10_000) == 0.0
    assert 0 < mcnemar(49_000, 51_000) < 1e-6


def test_bootstrap_against_resampling_the_samples_one_by_one() -> None:
    differences = [1] * 30 + [-1] * 12 + [0] * 158
    draw = random.Random(0)
    means = sorted(sum(draw.choices(differences, k=200)) / 200 for _ in range(4000))
    low, high = bootstrap_interval(30, 12, 200, seed=0)
    assert low == pytest.approx(means[100], abs=0.008)
    assert high == pytest.approx(means[3900], abs=0.008)


def test_bootstrap_against_the_normal_approximation_and_its_seed() -> None:
    low, high = bootstrap_interval(600, 400, 10_000, seed=3)
    deviation = math.sqrt((1000 / 10_000 - 0.02**2) / 10_000)
    assert low == pytest.approx(0.02 - 1.96 * deviation, abs=3e-4)
    assert high == pytest.approx(0.02 + 1.96 * deviation, abs=3e-4)
    assert (low, high) == bootstrap_interval(600, 400, 10_000, seed=3)
    assert (low, high) != bootstrap_interval(600, 400, 10_000, seed=4)
    assert bootstrap_interval(0, 0, 100, seed=0) == (0.0, 0.0)


def test_gain_counts_pairs() -> None:
    student = torch.tensor([True, True, False, True, False])
    baseline = torch.tensor([True, False, True, False, False])
    found = gain("accuracy", student.double(), baseline.double(), seed=0)
    assert found["accuracy"] == pytest.approx(1 / 5)
    assert found["mcnemar"]["only_student_right"] == 2
    assert found["mcnemar"]["only_baseline_right"] == 1
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    assert "paired bootstrap" in found["method"]
