"""Classes that count differently: against a slow loop, and the baseline's part in it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcore.data import Places
from kdcore.losses import Batch, BinaryCrossEntropyConfig, Context, CrossEntropyConfig, LossError
from kdcore.losses.cross_entropy import cross_entropy, seen_cross_entropy
from kdcore.opening import open_job
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import SpecError, parse_spec
from kdcore.stages import list_stages

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0], [-1.0, 0.0, 3.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 2, 1])
WEIGHTS = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def slowly(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
    total = divisor = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            probability = torch.tensor(row, dtype=torch.float64).exp()
            total -= float(weights[label]) * float((probability[label] / probability.sum()).log())
            divisor += float(weights[label])
    return total / divisor


def test_the_value_is_the_loop_s() -> None:
    found = seen_cross_entropy(LOGITS, LABELS, class_weights=WEIGHTS)
    assert found.item() == pytest.approx(slowly(LOGITS, LABELS, WEIGHTS))
    some = torch.tensor([0, -1, 2, -1])
    assert seen_cross_entropy(LOGITS, some, class_weights=WEIGHTS).item() == pytest.approx(
        slowly(LOGITS, some, WEIGHTS)
    )
    alike = seen_cross_entropy(LOGITS, LABELS, 0.1, class_weights=torch.full((3,), 7.0))
    assert alike.item() == pytest.approx(cross_entropy(LOGITS, LABELS, 0.1).item())
    none = seen_cross_entropy(LOGITS.clone().requires_grad_(), torch.full((4,), -1), class_weights=WEIGHTS)
    none.backward()
    assert none.item() == 0


def term_value(context: Context, **options: Any) -> float:
    term = CrossEntropyConfig(**options).build(context)
    return term(Batch({"logits": LOGITS.float()}, [], LABELS, torch.arange(4), LOGITS)).item()


def test_balanced_weights_are_by_the_counts_of_the_labels() -> None:
    context = Context(student={"logits": (3,)}, classes=3, label_counts=torch.tensor([10, 20, 70]))
    balanced = torch.tensor([100 / 30, 100 / 60, 100 / 210], dtype=torch.float64)
    assert term_value(context, class_weights="balanced") == pytest.approx(slowly(LOGITS, LABELS, balanced))
    assert term_value(context, class_weights=WEIGHTS.tolist()) == pytest.approx(slowly(LOGITS, LABELS, WEIGHTS))
    assert term_value(context) == pytest.approx(cross_entropy(LOGITS, LABELS).item())


def test_a_class_without_samples_does_no_harm() -> None:
    context = Context(student={"logits": (3,)}, classes=3, label_counts=torch.tensor([10, 0, 20]))
    assert torch.tensor(term_value(context, class_weights="balanced")).isfinite()


def spec(weights: Any) -> dict[str, Any]:
    model = {"model": {"type": "mlp"}}
    losses = [{"type": "cross_entropy", "class_weights": weights}, {"type": "kd"}]
    return {"data": {"type": "digits"}, "teachers": [model], "student": model, "stages": [{"losses": losses}]}


def test_the_baseline_has_the_student_s() -> None:
    baseline = next(stage for stage in list_stages(parse_spec(spec("balanced"))) if stage.role == "baseline")
    assert baseline.losses == [CrossEntropyConfig(class_weights="balanced")]


def test_there_are_as_many_as_classes() -> None:
    with pytest.raises(LossError):
        term_value(Context(student={"logits": (3,)}, classes=3), class_weights=[1.0, 2.0])
    with pytest.raises(SpecError, match="2 weights for 10 classes") as caught:
        make_plan(parse_spec(spec([1.0, 2.0])))
    assert caught.value.errors[0][0] == ("stages", 0, "losses", 0, "class_weights")


def test_it_trains(light: Any) -> None:
    document = spec("balanced") | {"data": {"type": "digits", "train_samples": 100}}
    document["stages"][0]["epochs"] = 2
    plain = spec(None) | {"data": {"type": "digits", "train_samples": 100}}
    plain["stages"][0]["epochs"] = 2
    weighted, unweighted = light(document)[0], light(plain)[0]
    assert weighted["digests"]["student"] != unweighted["digests"]["student"]
    assert weighted["digests"]["baseline"] != unweighted["digests"]["baseline"]


@pytest.mark.parametrize(
    ("given", "loc", "message"),
    [
        ([1, -1], ("class_weights", 1), "must be above 0"),
        ("even", ("class_weights",), "must be 'balanced'"),
        (5, ("class_weights",), "must be a list"),
        ({"a": 1}, ("class_weights",), "must be a list"),
        ([1, 2], ("class_weights",), "2 weights for 10 classes"),
    ],
    ids=str,
)
def test_bad_weights_have_one_error_that_is_right(given: Any, loc: tuple[Any, ...], message: str) -> None:
    model = {"model": {"type": "mlp"}}
    with pytest.raises(SpecError) as caught:
        make_plan(
            parse_spec(
                {
                    "data": {"type": "digits"}, "teachers": [model], "student": model,
                    "stages": [{"losses": [{"type": "cross_entropy", "class_weights": given}]}],
                }
            )
        )  # fmt: skip
    ((found, said),) = caught.value.errors
    assert found == ("stages", 0, "losses", 0, *loc)
    assert message in said


# Labels that say yes beside those that say no.

MANY = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])


def binary_value(context: Context, labels: torch.Tensor = MANY, **options: Any) -> float:
    term = BinaryCrossEntropyConfig(**options).build(context)
    return term(Batch({"logits": LOGITS[:, :2].float()}, [], labels, torch.arange(4), LOGITS)).item()


def slowly_binary(weights: list[float]) -> float:
    pairs = [
        (z, y, weights[c]) for c in (0, 1) for z, y in zip(LOGITS[:, c].tolist(), MANY[:, c].tolist(), strict=True)
    ]
    return sum(w * y * math.log1p(math.exp(-z)) + (1 - y) * math.log1p(math.exp(z)) for z, y, w in pairs) / 8


def test_positive_labels_count_as_much_as_is_said() -> None:
    context = Context(
        student={"logits": (2,)}, classes=2, task="multi_label", label_counts=torch.tensor([10, 25]), labels_seen=100
    )
    assert binary_value(context) == pytest.approx(slowly_binary([1, 1]))
    assert binary_value(context, pos_weight=[3, 0.5]) == pytest.approx(slowly_binary([3, 0.5]))
    assert binary_value(context, pos_weight="balanced") == pytest.approx(slowly_binary([9, 3]))
    alone = replace(context, label_counts=torch.tensor([0, 100]))  # a class with one kind of label alone
    assert binary_value(alone, pos_weight="balanced") == pytest.approx(slowly_binary([100, 0.01]))


def multi_label(pos_weight: Any) -> dict[str, Any]:
    model = {"model": {"type": "mlp", "hidden": [8]}}
    return {
        "data": {"type": "synthetic", "task": "multi_label", "outputs": 3, "samples": 100},
        "teachers": [model | {"train": {"epochs": 1}}],
        "student": model,
        "stages": [{"epochs": 2, "losses": [{"type": "binary_cross_entropy", "pos_weight": pos_weight}]}],
    }


def test_rare_labels_are_counted_in_the_job_and_the_baseline_has_the_student_s(light: Any, tmp_path: Path) -> None:
    spec = parse_spec(multi_label("balanced"))
    baseline = next(stage for stage in list_stages(spec) if stage.role == "baseline")
    assert baseline.losses == [BinaryCrossEntropyConfig(pos_weight="balanced")]
    places = {"places": Places(tmp_path), "checkpoints": tmp_path, "teacher_weights": {}}
    job = open_job(spec, RecordingReporter(), choices=None, resume=None, **places)  # type: ignore[arg-type]
    yes = job.data.train.labels.sum(0)
    term = job.prepare(job.stages[-1]).terms[0]
    torch.testing.assert_close(term.pos_weight, (90 - yes) / yes)
    weighted, plain = light(spec)[0], light(multi_label(None))[0]
    assert weighted["digests"]["teacher-1"] == plain["digests"]["teacher-1"]
    assert weighted["digests"]["student"] != plain["digests"]["student"]
    assert weighted["digests"]["baseline"] != plain["digests"]["baseline"]


def test_there_are_as_many_positive_weights_as_classes() -> None:
    with pytest.raises(SpecError, match="2 weights for 3 classes") as caught:
        make_plan(parse_spec(multi_label([1.0, 2.0])))
    assert caught.value.errors[0][0] == ("stages", 0, "losses", 0, "pos_weight")
