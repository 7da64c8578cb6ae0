"""The transfer set, unseen labels, and offsets chosen on the validation split."""

from typing import Any

import pytest
import torch

from kdcore.bias import best_offset
from kdcore.losses.cross_entropy import cross_entropy, seen_cross_entropy
from kdcore.plan import make_plan
from kdcore.spec import SpecError, parse_spec
from kdcore.transfer import UNLABELLED, TransferConfig, choose_samples

LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 2, 1, 0, 0])
CLASSES = ("a", "b", "c")


def test_classes_that_are_left_out_are_not_learned_on() -> None:
    chosen, seen = choose_samples(TransferConfig(without_classes=["b"]), LABELS, CLASSES)
    assert chosen.tolist() == [0, 2, 3, 5, 6, 8, 9]
    assert torch.equal(seen, LABELS)


def test_a_share_of_each_class_keeps_its_labels() -> None:
    labels = torch.arange(300) % 3
    chosen, seen = choose_samples(TransferConfig(labelled=0.1), labels, CLASSES)
    assert len(chosen) == 300
    kept = seen != UNLABELLED
    assert torch.bincount(seen[kept]).tolist() == [10, 10, 10]
    assert torch.equal(seen[kept], labels[kept])
    assert torch.equal(choose_samples(TransferConfig(labelled=0.1), labels, CLASSES)[1], seen)
    least = choose_samples(TransferConfig(labelled=0.001), labels, CLASSES)[1]
    assert sorted(least[least != UNLABELLED].tolist()) == [0, 1, 2]  # else a baseline would have nothing to learn from


def test_a_share_of_the_labels_is_wrong_and_the_same_every_time() -> None:
    labels = torch.arange(3_000) % 3
    chosen, seen = choose_samples(TransferConfig(label_noise=0.3), labels, CLASSES)
    assert len(chosen) == 3_000
    wrong = seen != labels
    assert int(wrong.sum()) == 900
    assert torch.bincount((seen - labels)[wrong] % 3, minlength=3)[1:].min() > 400  # either other class as likely
    assert torch.equal(choose_samples(TransferConfig(label_noise=0.3), labels, CLASSES)[1], seen)
    some = choose_samples(TransferConfig(label_noise=0.3, labelled=0.5), labels, CLASSES)[1]
    assert torch.equal(some[some != UNLABELLED], seen[some != UNLABELLED])


def test_teachers_see_the_right_labels(light: Any) -> None:
    clean, _ = light(BASE)
    noisy, _ = light(BASE | {"transfer": {"label_noise": 0.5}, "stages": [{"epochs": 8}]})
    assert noisy["digests"]["teacher-1"] == clean["digests"]["teacher-1"]
    assert noisy["digests"]["student"] != clean["digests"]["student"]


def test_cross_entropy_of_the_labels_that_are_seen() -> None:
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    some = torch.where(torch.arange(10) < 4, LABELS, UNLABELLED)
    assert seen_cross_entropy(logits, some).item() == pytest.approx(cross_entropy(logits[:4], LABELS[:4]).item())
    assert seen_cross_entropy(logits, LABELS).item() == pytest.approx(cross_entropy(logits, LABELS).item())
    none = seen_cross_entropy(logits, torch.full((10,), UNLABELLED))
    none.backward()
    assert none.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_offset_is_better_than_the_one_that_is_chosen(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(40, 5, generator=generator), torch.randint(0, 5, (40,), generator=generator)
    chosen = torch.tensor([False, True, False, True, False])
    logits[:, chosen] -= 1

    def right(offset: float) -> int:
        return int(((logits.double() + offset * chosen).argmax(1) == labels).sum())

    assert right(best_offset(logits, labels, chosen)) >= max(right(o) for o in torch.linspace(-6, 6, 801).tolist())


def test_no_offset_where_none_helps() -> None:
    logits, labels = torch.eye(3) * 5, torch.tensor([0, 1, 2])
    assert best_offset(logits, labels, torch.tensor([False, True, False])) == 0.0


BASE: dict[str, Any] = {
    "data": {"type": "digits", "train_samples": 200},
    "teachers": [{"model": {"type": "mlp", "hidden": [32]}, "train": {"epochs": 8}}],
    "student": {"model": {"type": "mlp", "hidden": [16]}},
    "stages": [{"epochs": 8, "losses": [{"type": "kd"}]}],
}


def test_without_labels_there_is_no_baseline(light: Any) -> None:
    left, reporter = light(BASE | {"transfer": {"labelled": 0}})
    assert reporter.stages == ["teacher-1", "distill-1"]
    assert set(left["models"]) == {"teacher-1", "student"}


def test_a_student_that_never_sees_a_class_says_it_once_its_offset_is_chosen(light: Any) -> None:
    without = BASE | {"transfer": {"without_classes": ["3"]}, "data": {"type": "digits"}}
    plain, _ = light(without)
    lifted, _ = light(without | {"student": BASE["student"] | {"offset_classes": ["3"]}})
    before, after = plain["models"]["student"], lifted["models"]["student"]
    offset = lifted["selected"]["distill-1"]["offset"]
    assert offset > 0
    difference = after["head.bias"] - before["head.bias"]
    assert difference[3].item() == pytest.approx(offset, abs=1e-5)
    assert difference[torch.arange(10) != 3].abs().max() == 0
    assert "offset" not in plain["selected"]["distill-1"]


@pytest.mark.parametrize(
    ("changes", "loc", "message"),
    [
        ({"transfer": {"without_classes": ["x"]}}, ("transfer", "without_classes", 0), "no class 'x'"),
        ({"transfer": {"without_classes": list("0123456789")}}, ("transfer", "without_classes"), "every class"),
        (
            {"student": {"model": {"type": "mlp"}, "offset_classes": ["x"]}},
            ("student", "offset_classes", 0),
            "no class",
        ),
        (
            {"student": {"model": {"type": "mlp"}, "offset_classes": list("0123456789")}},
            ("student", "offset_classes"),
            "on every class changes nothing",
        ),
        *(
            (
                {
                    "transfer": {"labelled": share},
                    "teachers": BASE["teachers"] * 2,
                    "stages": [{"losses": [{"type": "multi_teacher", "weighting": "confidence"}]}],
                },
                ("stages", 0, "losses", 0, "type"),
                "needs labels" if share == 0 else "label of every sample",
            )
            for share in (0, 0.5)
        ),
        (
            {"transfer": {"labelled": 0}, "stages": [{"losses": [{"type": "kd"}, {"type": "cross_entropy"}]}]},
            ("stages", 0, "losses", 1, "type"),
            "needs labels",
        ),
        (
            {"transfer": {"labelled": 0.5}, "stages": [{"losses": [{"type": "dkd"}]}]},
            ("stages", 0, "losses", 0, "type"),
            "label of every sample",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_its_place(changes: dict[str, Any], loc: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make_plan(parse_spec(BASE | changes))
    assert loc in [place for place, _ in caught.value.errors]
