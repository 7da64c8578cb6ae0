"""What cannot be distilled is refused at submission, at the field that is wrong, with what would do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcore.data import Places
from kdcore.errors import TrainingError
from kdcore.export import save_weights
from kdcore.models import LSTMConfig
from kdcore.opening import open_job
from kdcore.plan import make_plan
from kdcore.reporter import RecordingReporter
from kdcore.spec import SpecError, parse_spec

MLP, CNN = {"type": "mlp", "hidden": [16]}, {"type": "cnn", "channels": [4, 8]}
RESNET = {"type": "resnet", "depth": 8}
DIGITS = {"type": "digits"}
REGRESSION = {"type": "synthetic", "task": "regression"}


def spec(losses: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    teachers = [{"model": changes.pop("teacher", CNN)}] * changes.pop("count", 1)
    model = {"model": changes.pop("student", CNN)}
    return {"data": DIGITS, "teachers": teachers, "student": model, "stages": [{"losses": losses}], **changes}


LOSS = ("stages", 0, "losses", 0)
CASES: dict[str, tuple[dict[str, Any], tuple[str | int, ...], str]] = {
    "a layer that does not exist": (
        spec([{"type": "hint", "student_layer": "conv_9", "teacher_layer": "conv_1"}]),
        (*LOSS, "student_layer"),
        "the student has no layer 'conv_9'; it has",
    ),
    "a map against a vector": (
        spec([{"type": "hint", "student_layer": "conv_1", "teacher_layer": "hidden_1"}]),
        (*LOSS, "teacher_layer"),
        "name two maps or two vectors",
    ),
    "a map where there is none": (
        spec([{"type": "attention_transfer"}], student=MLP),
        (*LOSS, "student_layers"),
        "map",
    ),
    "a deeper layer before a shallower one": (
        spec([{"type": "review", "student_layers": ["conv_1", "conv_2"], "teacher_layers": ["conv_2", "conv_1"]}]),
        (*LOSS, "teacher_layers"),
        "name its layers in order of depth: conv_1, conv_2",
    ),
    "widths that a loss cannot bridge": (
        spec([{"type": "flow_of_solution"}], teacher={**CNN, "channels": [6, 9]}),
        (*LOSS, "student_layers"),
        "channels",
    ),
    "a width that the baseline cannot learn classes with": (
        spec([{"type": "rkd_distance"}], data=DIGITS | {"task": "embedding"}, student={**CNN, "classes": 4}),
        ("student", "model", "classes"),
        "wants 10 outputs, one for each class; leave `classes` out, or set `baseline` to false",
    ),
    "a teacher's width that cannot learn classes": (
        spec([{"type": "rkd_distance"}], data=DIGITS | {"task": "embedding"}, teacher={**CNN, "classes": 64}),
        ("teachers", 0, "model", "classes"),
        "or name the `losses` of its `train`",
    ),
    "logits of another width": (
        spec([{"type": "kd", "teacher_layer": "hidden_1"}]),
        (*LOSS, "teacher_layer"),
        "name two layers of the same width",
    ),
    "a teacher with other classes": (
        spec([{"type": "kd"}], teacher={**CNN, "classes": 7}),
        ("teachers", 0, "model", "classes"),
        "the data has 10",
    ),
    "a teacher for larger pictures": (
        spec([{"type": "kd"}], teacher={"type": "resnet", "form": "imagenet", "depth": 18}),
        ("teachers", 0, "model", "type"),
        "32 pixels",
    ),
    "a teacher of words": (
        spec([{"type": "kd"}], teacher={"type": "text_cnn"}),
        ("teachers", 0, "model", "type"),
        "text",
    ),
    "a loss for another task": (
        spec([{"type": "kd"}], data=REGRESSION, teacher=MLP, student=MLP),
        (*LOSS, "type"),
        "the data's task is regression",
    ),
    "temperature 0": (spec([{"type": "kd", "temperature": 0}]), (*LOSS, "temperature"), "at least 0.01"),
    "two teachers and one weight": (
        spec([{"type": "multi_teacher", "weighting": "weights", "weights": [1.0]}], count=2),
        (*LOSS, "weights"),
        "2",
    ),
    "a teacher that is not there": (spec([{"type": "kd", "teacher": 2}]), (*LOSS, "teacher"), "1 teacher"),
    "a class left out that does not exist": (
        spec([{"type": "kd"}], transfer={"without_classes": ["ten"]}),
        ("transfer", "without_classes", 0),
        "the data has no class 'ten'; it has",
    ),
    "every class left out": (
        spec([{"type": "kd"}], transfer={"without_classes": [str(n) for n in range(10)]}),
        ("transfer", "without_classes"),
        "nothing is left",
    ),
    "a view of other samples": (
        {**spec([{"type": "kd"}]), "student": {"model": MLP, "view": {"type": "bag_of_words"}}},
        ("student", "view", "type"),
        "texts",
    ),
    "a score of another task": (spec([{"type": "kd"}], select_by="mae"), ("select_by",), "accuracy"),
    "early stopping that looks at no score": (
        spec([], select_by="last", stages=[{"early_stopping": {}}]),
        ("stages", 0, "early_stopping"),
        "looks at no score",
    ),
    "noise on labels that are no classes": (
        spec([{"type": "logit_mse"}], data=REGRESSION, teacher=MLP, student=MLP, transfer={"label_noise": 0.1}),
        ("transfer", "label_noise"),
        "no classes",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_at_its_field(name: str) -> None:
    document, loc, message = CASES[name]
    with pytest.raises(SpecError) as caught:
        make_plan(parse_spec(document))
    assert [found for found, _ in caught.value.errors] == [loc]
    assert message in caught.value.errors[0][1]


def test_a_last_batch_of_one_sample_is_said_where_batch_normalisation_cannot_use_it(light: Any) -> None:
    large = {"type": "resnet", "form": "imagenet", "depth": 18}
    view = {"type": "resize", "size": 32}
    document = {
        "data": {"type": "digits", "train_samples": 9, "validation": 8},
        "teachers": [{"model": MLP, "train": {"epochs": 1, "batch_size": 8}}],
        "student": {"model": large, "view": view},
        "stages": [{"epochs": 1, "batch_size": 4}],
    }
    with pytest.raises(TrainingError, match=r"stage 'baseline', batch_size 4: a batch of one sample") as caught:
        light(document)
    assert (caught.value.code, caught.value.kind) == ("single_sample", "user")


def test_weights_of_a_model_with_another_vocabulary_fail_the_job_before_its_first_step(tmp_path: Path) -> None:
    data = {"type": "ag_news", "vocabulary": 50, "length": 8}
    folder = tmp_path / "ag_news"
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        rows = [f'"{number % 4 + 1}","word{number}","and more"' for number in range(40)]
        (folder / name).write_text("\n".join(rows))
    with torch.random.fork_rng():
        other = LSTMConfig(hidden=8).build((8,), 4, vocabulary=60)
    save_weights(tmp_path / "teacher.safetensors", other.state_dict())
    model = {"type": "lstm", "hidden": 8}
    teacher = {"model": model, "weights": {"file": "teacher.safetensors"}}
    document = parse_spec({"data": data, "teachers": [teacher], "student": {"model": model}})
    with pytest.raises(TrainingError, match=r"embedding\.weight has shape") as caught:
        open_job(
            document, RecordingReporter(), places=Places(tmp_path), checkpoints=tmp_path / "c", choices=None,
            resume=None, teacher_weights={},
        )  # fmt: skip
    assert (caught.value.code, caught.value.kind) == ("bad_teacher_weights", "user")
