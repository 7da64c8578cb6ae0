"""The spec: defaults, round trips, digests, and stages in order."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from kdcore.catalog import spec_schema
from kdcore.config import SpecError, dotted
from kdcore.losses import CrossEntropyConfig, KDConfig
from kdcore.spec import JobSpec, parse_spec, spec_digest, spec_document
from kdcore.stages import list_stages
from tests.speed import SPEED

EXAMPLES = sorted(
    path for path in (Path(__file__).parents[2] / "examples").glob("*.yaml") if path.stem != "upload-budget"
)
"""But the one whose student is picked once its data are known: tests/docs/test_methods.py."""
SHORT = """
data: {type: digits}
teachers: [{model: {type: mlp, hidden: [256, 256]}}]
student: {model: {type: mlp, hidden: [8]}}
"""
BASE: dict[str, Any] = {
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp"}}],
    "student": {"model": {"type": "mlp"}},
}


def test_three_lines_are_a_good_job() -> None:
    spec = parse_spec(SHORT)
    assert spec.name == "digits-mlp"
    assert spec.baseline
    assert spec.teachers[0].train is not None
    (stage,) = spec.stages
    label, soft = stage.losses
    assert (stage.name, stage.epochs, stage.batch_size, stage.optimizer.lr) == ("distill-1", 10, 64, 1e-3)
    assert isinstance(label, CrossEntropyConfig)
    assert isinstance(soft, KDConfig)
    assert (label.weight, soft.weight, soft.temperature) == (0.1, 0.9, 4.0)


@pytest.mark.parametrize("text", [SHORT, *(path.read_text() for path in EXAMPLES)])
def test_the_stored_spec_is_complete_and_comes_back_the_same(text: str) -> None:
    spec = parse_spec(text, SPEED)
    document = spec_document(spec)
    assert parse_spec(document) == spec
    assert parse_spec(json.dumps(document)) == spec
    assert spec_document(parse_spec(document)) == document
    assert spec_digest(parse_spec(json.dumps(document))) == spec_digest(spec)
    assert document["spec_version"] == 2


def test_examples_are_there() -> None:
    assert {"digits-mlp", "mnist-cnn", "mnist-mlp"} <= {path.stem for path in EXAMPLES}


def test_a_whole_number_is_the_same_float() -> None:
    one = parse_spec({**BASE, "stages": [{"gradient_clip": 1}]})
    other = parse_spec({**BASE, "stages": [{"gradient_clip": 1.0}]})
    assert spec_digest(one) == spec_digest(other)
    assert spec_digest(one) != spec_digest(parse_spec(BASE))


def test_the_classic_experiment() -> None:
    spec = parse_spec((Path(__file__).parents[2] / "examples" / "mnist-mlp.yaml").read_text())
    (teacher,), (stage,) = spec.teachers, spec.stages
    assert teacher.train is not None
    assert (teacher.model.hidden, teacher.model.dropout) == ([1200, 1200], 0.5)
    assert (teacher.train.epochs, teacher.train.batch_size, teacher.train.optimizer.lr) == (6, 32, 1e-4)
    assert (spec.student.model.hidden, stage.epochs, stage.batch_size, stage.optimizer.lr) == ([20, 20], 5, 32, 1e-4)
    label, soft = stage.losses
    assert (label.type, label.weight, soft.type, soft.weight) == ("cross_entropy", 0.3, "kd", 0.7)
    assert isinstance(soft, KDConfig)
    assert soft.temperature == 7


def test_stages_run_in_order() -> None:
    spec = parse_spec({**BASE, "stages": [{"epochs": 1}, {"name": "fine", "epochs": 2}]})
    stages = list_stages(spec)
    assert [(stage.name, stage.role, stage.index) for stage in stages] == [
        ("teacher-1", "teacher", 0),
        ("baseline-1", "baseline", 0),
        ("baseline-2", "baseline", 1),
        ("distill-1", "distill", 0),
        ("fine", "distill", 1),
    ]
    assert [stage.train.epochs for stage in stages] == [10, 1, 2, 1, 2]
    assert stages[1].losses == stages[2].losses == [CrossEntropyConfig(weight=1.0)]
    assert stages[3].losses == spec.stages[0].losses


def test_one_stage_has_one_baseline_unless_it_is_not_wanted() -> None:
    assert [stage.name for stage in list_stages(parse_spec(BASE))] == ["teacher-1", "baseline", "distill-1"]
    assert [stage.name for stage in list_stages(parse_spec({**BASE, "baseline": False}))] == ["teacher-1", "distill-1"]


def test_a_teacher_with_weights_is_not_trained() -> None:
    for weights in ({"job": "job_" + "0" * 26}, {"file": "teachers/big.safetensors"}):
        spec = parse_spec({**BASE, "teachers": [{"model": {"type": "mlp"}, "weights": weights}]})
        assert spec.teachers[0].train is None
        assert list_stages(spec)[0].name == "baseline"


def test_the_teacher_is_trained_on_smoothed_labels_if_wanted() -> None:
    teacher = {"model": {"type": "mlp"}, "train": {"label_smoothing": 0.1}}
    assert list_stages(parse_spec({**BASE, "teachers": [teacher]}))[0].losses == [
        CrossEntropyConfig(label_smoothing=0.1)
    ]


@pytest.mark.parametrize(
    ("stages", "loc"),
    [
        ([{"name": "a"}, {"name": "a"}], ("stages", 1, "name")),
        ([{"name": "distill-2"}, {}], ("stages", 1, "name")),
        ([{"name": "baseline"}], ("stages", 0, "name")),
        ([{}, {"name": "teacher-7"}], ("stages", 1, "name")),
    ],
)
def test_stage_names_are_unique_and_free(stages: list[dict[str, str]], loc: tuple[str | int, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({**BASE, "stages": stages})
    assert [error[0] for error in caught.value.errors] == [loc]


def test_a_spec_does_not_change() -> None:
    spec = parse_spec(SHORT)
    with pytest.raises(ValueError, match="frozen"):
        spec.seed = 3


def test_sizes_are_read_with_units() -> None:
    assert parse_spec({**BASE, "limits": {"max_memory": "4GiB"}}).limits.max_memory == 4 * 2**30
    assert parse_spec({**BASE, "limits": {"max_memory": 2**30}}).limits.max_memory == 2**30


def test_the_schema_accepts_what_the_parser_accepts() -> None:
    validator = Draft202012Validator(spec_schema())
    Draft202012Validator.check_schema(spec_schema())
    for path in EXAMPLES:
        document = spec_document(parse_spec(path.read_text(), SPEED))
        assert list(validator.iter_errors(document)) == []
    assert list(validator.iter_errors(BASE)) == []
    assert not validator.is_valid({**BASE, "bogus": 1})
    assert not validator.is_valid({**BASE, "stages": [{"epochs": 0}]})
    assert not validator.is_valid({**BASE, "seed": -1})


def test_every_field_has_a_bound() -> None:
    """Numbers without an upper bound would let one job ask for anything."""

    def unbounded(schema: Any, path: str) -> list[str]:
        if isinstance(schema, list):
            return [name for index, item in enumerate(schema) for name in unbounded(item, f"{path}/{index}")]
        if not isinstance(schema, dict):
            return []
        number = schema.get("type") in ("integer", "number")
        bounded = "const" in schema or "enum" in schema or "maximum" in schema or "exclusiveMaximum" in schema
        here = [path] if number and not bounded else []
        return here + [name for key, item in schema.items() for name in unbounded(item, f"{path}/{key}")]

    found = unbounded(JobSpec.model_json_schema(), "")
    assert [path for path in found if "max_memory" not in path] == []  # its bound is beside its two types


def test_dotted() -> None:
    assert dotted(("stages", 0, "losses", 1, "weight")) == "stages[0].losses[1].weight"
    assert dotted(()) == "spec"
