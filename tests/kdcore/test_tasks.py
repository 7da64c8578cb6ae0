"""Scores of tasks against values worked out by hand, slow loops and scikit-learn."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, r2_score, roc_auc_score
from torch import Tensor

from kdcore.compare import gain, sign_flips
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec
from kdcore.tasks import (
    TASKS,
    auroc,
    binary_nll,
    binary_predictive_kl,
    label_accuracy,
    macro_f1,
    mae,
    r2,
    recall_hits,
    rmse,
)
from kdcore.train import run


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_macro_f1_by_hand_and_against_another() -> None:
    # Class 0: 1 hit, 1 miss, 0 false: 2/3. Class 1: 0 hits, 1 false: 0.
    logits, labels = torch.tensor([[1.0, 2.0], [-1.0, -1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert macro_f1(logits, labels) == pytest.approx(1 / 3)
    logits, labels = noise(200, 5), (noise(200, 5, seed=1) > 0.3).float()
    expected = f1_score(labels.numpy(), (logits > 0).numpy(), average="macro")
    assert macro_f1(logits, labels) == pytest.approx(expected)


def test_auroc_by_hand_and_with_ties() -> None:
    # Positives score 3 and 1, negatives 2 and 1: pairs 3>2, 3>1, 1<2, 1=1: (1 + 1 + 0 + ½) / 4.
    logits, labels = torch.tensor([[3.0], [1.0], [2.0], [1.0]]), torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    assert auroc(logits, labels) == pytest.approx(2.5 / 4)
    logits, labels = noise(300, 4).round(decimals=1), (noise(300, 4, seed=1) > 0).float()
    assert auroc(logits, labels) == pytest.approx(roc_auc_score(labels.numpy(), logits.numpy(), average="macro"))


def test_auroc_leaves_a_class_of_one_kind_out() -> None:
    logits, labels = torch.tensor([[1.0, 5.0], [0.0, 4.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert auroc(logits, labels) == 1.0
    assert auroc(logits, torch.ones(2, 2)) == 0.5


def test_label_accuracy_by_hand() -> None:
    logits, labels = torch.tensor([[1.0, 2.0], [-1.0, -1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert label_accuracy(logits, labels) == 0.5


def test_binary_predictive_kl_by_hand() -> None:
    # The teacher says 3/4, the student 1/2; then both the same, however sure.
    student, teacher = torch.tensor([[0.0]]), torch.tensor([[math.log(3)]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert binary_predictive_kl(student, teacher) == pytest.approx(expected)
    sure = torch.tensor([[1e4, -1e4, 0.0]])
    assert binary_predictive_kl(sure, sure) == 0
    assert binary_predictive_kl(-sure, sure) == pytest.approx(2e4 / 3)


def test_binary_nll_by_hand() -> None:
    assert binary_nll(torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]])) == pytest.approx(
        (math.log(2) + math.log(4)) / 2
    )


def test_errors_of_a_regression_by_hand_and_against_another() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [4.0], [1.0]])
    assert mae(outputs, targets) == pytest.approx(5 / 3)
    assert rmse(outputs, targets) == pytest.approx(math.sqrt(13 / 3))
    assert r2(outputs, targets) == pytest.approx(1 - 13 / 6)  # the mean is 2; 1 + 4 + 1 = 6
    outputs, targets = noise(50, 3), noise(50, 3, seed=1)
    assert r2(outputs, targets) == pytest.approx(r2_score(targets.numpy(), outputs.numpy()))
    assert r2(outputs, torch.ones(50, 3)) == 0


@pytest.mark.parametrize("k", [1, 5])
def test_recall_against_a_slow_loop(k: int) -> None:
    points, labels = noise(60, 3), torch.randint(0, 12, (60,), generator=torch.Generator().manual_seed(1))
    hits = []
    for i in range(60):
        likeness = [
            (torch.cosine_similarity(points[i].double(), points[j].double(), dim=0).item(), j)
            for j in range(60)
            if j != i
        ]
        nearest = [j for _, j in sorted(likeness, reverse=True)[:k]]
        hits.append(any(labels[j] == labels[i] for j in nearest))
    assert recall_hits(points, labels, k).tolist() == hits


@pytest.mark.parametrize("name", TASKS)
def test_the_first_score_names_the_task_and_more_is_better(name: str) -> None:
    task = TASKS[name]  # type: ignore[index]
    assert task.main in task.scores
    assert task.better(task.main, 1.0) == (-1.0 if name == "regression" else 1.0)


def test_gain_of_a_mean_difference() -> None:
    student, baseline = noise(400).double(), noise(400).double() - 0.5
    found = gain("mae", student, baseline, seed=1)
    low, high = found["interval"]
    assert found["mae"] == pytest.approx((student - baseline).mean().item())
    assert low <= found["mae"] <= high
    assert "mcnemar" not in found
    assert found["sign_flips"]["p"] == 1 / 1001  # half a deviation of each of 400 samples
    assert found == gain("mae", student, baseline, seed=1)


def test_sign_flips_against_all_signs_of_few_samples_and_the_normal_approximation_of_many() -> None:
    few = noise(8).double().numpy() + 0.5
    sums = [abs(few @ signs) for signs in itertools.product((1, -1), repeat=8)]
    exact = sum(each >= abs(few.sum()) - 1e-12 for each in sums) / 256
    assert sign_flips(few, np.random.default_rng(0)) == pytest.approx(exact, abs=0.05)  # 3 deviations of 1,000 draws
    many = noise(2000).double().numpy() + 0.03
    normal = math.erfc(abs(many.sum()) / math.sqrt(2 * (many**2).sum()))
    assert sign_flips(many, np.random.default_rng(0)) == pytest.approx(normal, abs=0.05)
    assert sign_flips(np.zeros(5), np.random.default_rng(0)) == 1
    assert sign_flips(few, np.random.default_rng(0)) == sign_flips(-few, np.random.default_rng(0))


@pytest.mark.parametrize(("task", "score"), [("regression", "mae"), ("multi_label", "label_accuracy")])
def test_the_gain_of_a_job_has_its_test_in_the_result_and_on_the_card(task: str, score: str, tmp_path: Path) -> None:
    model = {"model": {"type": "mlp", "hidden": [8]}}
    document = {
        "data": {"type": "synthetic", "task": task, "outputs": 3, "samples": 100},
        "teachers": [model | {"train": {"epochs": 2}}],
        "student": model,
        "stages": [{"epochs": 2, "losses": [{"type": {"regression": "logit_mse"}.get(task, "binary_kd")}]}],
    }
    result = run(parse_spec(document), data_root=tmp_path, out=tmp_path, reporter=RecordingReporter())
    assert result["gain"]["score"] == score
    p = result["gain"]["sign_flips"]["p"]
    assert 1 / 1001 <= p <= 1
    assert f"sign-flip p = {p:.2g}" in result["summary"]
    assert f"p = {p:.2g}." in (tmp_path / "README.md").read_text()
