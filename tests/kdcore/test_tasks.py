"""Scores of tasks against values worked out by hand, slow loops and scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import f1_score, r2_score, roc_auc_score
from torch import Tensor

from kdcore.compare import gain
from kdcore.tasks import TASKS, auroc, binary_nll, macro_f1, mae, r2, recall_hits, rmse


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
    assert found == gain("mae", student, baseline, seed=1)
