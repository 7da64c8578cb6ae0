"""Specs and checkpoints of other versions: older ones are read, later ones refused with a sentence."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcore import __main__, checkpoint, train, upgrade
from kdcore.choices import Choices
from kdcore.config import SPEC_VERSION, SpecError
from kdcore.errors import TrainingError
from kdcore.reporter import RecordingReporter
from kdcore.spec import JobSpec, parse_spec, spec_digest, spec_document
from kdcore.state import State
from tests.versions import FIRST, NAMES, begin_next_version, digest, rewrite, stored, undisturbed, written

__all__ = ["undisturbed"]

(BETWEEN, MIDDLE, *_) = sorted((FIRST / "home" / "jobs").rglob("checkpoint-*.pt"))


@pytest.mark.parametrize("name", NAMES)
def test_specs_of_the_first_release_are_read(name: str) -> None:
    """As its user wrote it and as it was stored."""
    spec = parse_spec(written(name))
    assert spec == parse_spec(stored(name)["spec"])
    assert spec_document(spec)["spec_version"] == SPEC_VERSION


def test_the_spec_s_version_rises_with_its_fields() -> None:
    """An older worker refuses a field it does not know: it must not claim such a job."""
    schema = JobSpec.model_json_schema()
    models = {"JobSpec": schema} | schema["$defs"]
    fields = {name: sorted(model["properties"]) for name, model in models.items() if "properties" in model}
    first = json.loads((FIRST / "specs" / "fields.json").read_text())
    assert fields == first or SPEC_VERSION > 1, "specs have other fields than those of version 1: raise SPEC_VERSION"


def test_a_spec_of_a_later_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(stored("waits")["spec"] | {"spec_version": SPEC_VERSION + 1, "unheard_of": True})
    ((loc, message),) = caught.value.errors
    assert loc == ("spec_version",)
    assert f"is {SPEC_VERSION + 1}; this version of Distillery reads specs up to version {SPEC_VERSION}" in message
    assert "upgrade" in message


@pytest.mark.parametrize("nonsense", [0, -1, 1.5, "1", None, [1]])
def test_a_version_that_is_none_is_named(nonsense: object) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(stored("waits")["spec"] | {"spec_version": nonsense})
    assert [loc for loc, _ in caught.value.errors] == [("spec_version",)]


def test_every_version_has_its_step() -> None:
    assert len(upgrade.STEPS) == SPEC_VERSION - 1


def test_an_older_spec_goes_through_every_later_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(document: dict[str, Any]) -> dict[str, Any]:
        document["seed"] = document.pop("number")
        return document

    monkeypatch.setattr(upgrade, "SPEC_VERSION", 3)  # whatever this release's is
    monkeypatch.setattr(upgrade, "STEPS", (rename, lambda document: document | {"seed": document["seed"] + 1}))
    given = {"spec_version": 1, "number": 6}
    assert upgrade.upgrade(given) == {"spec_version": 3, "seed": 7}
    assert upgrade.upgrade({"spec_version": 2, "seed": 6}) == {"spec_version": 3, "seed": 7}
    assert upgrade.upgrade({"spec_version": 3, "seed": 6}) == {"spec_version": 3, "seed": 6}
    assert upgrade.upgrade({"seed": 6}) == {"seed": 6}
    assert given == {"spec_version": 1, "number": 6}


def run(folder: Path, spec: JobSpec, resume: Path | None = None, **options: Any) -> tuple[str, RecordingReporter]:
    """Run a spec to its end; the student's digest, and what was reported."""
    reporter = RecordingReporter()
    choices = Choices.model_validate(torch.load(MIDDLE, weights_only=True)["choices"])
    given = {"data_root": folder, "out": folder / "out", "choices": choices, "download": False, "resume": resume}
    train.run(spec, reporter=reporter, **given, **options)
    return digest((folder / "out" / "student.safetensors").read_bytes()), reporter


@pytest.mark.parametrize("path", [BETWEEN, MIDDLE], ids=["between", "middle"])
def test_the_first_release_s_checkpoint_ends_in_the_bytes_of_an_undisturbed_run(
    tmp_path: Path, path: Path, subtests: pytest.Subtests, request: pytest.FixtureRequest
) -> None:
    """The specs of later releases have more fields, and so another digest; the stored one goes on to count."""
    job = stored("paused")
    spec = parse_spec(job["spec"])
    assert spec_digest(spec) != job["spec_digest"]
    found, reporter = run(tmp_path, spec, path, spec_digest=job["spec_digest"])
    at = dict(reporter.events)["resumed_from_checkpoint"]
    assert (at["stage"], at["step"] > 0) == ("distill-1", path == MIDDLE)
    told = dict(reporter.events).get("choices_changed", {"before": {}, "now": {}})
    assert {name for name, value in told["before"].items() if told["now"][name] != value} <= {"cpu", "torch"}
    with subtests.test("the bytes"):
        assert found == request.getfixturevalue("undisturbed")


def test_the_checkpoint_s_version_rises_with_what_it_holds() -> None:
    content = torch.load(MIDDLE, weights_only=True)
    same = set(content["state"]) == {field.name for field in dataclasses.fields(State)}
    assert same or checkpoint.VERSION > 1, "State has other fields than in checkpoints of version 1: raise VERSION"


def test_a_checkpoint_notes_its_spec_so_that_a_later_release_knows_it_again(
    light: Any, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, whole = light(tiny)
    path = whole.checkpoints[-2].path.rename(tmp_path / "kept.pt")
    begin_next_version(monkeypatch)
    found, _ = light(tiny, resume=path)
    assert found["digests"] == wanted["digests"]
    with pytest.raises(TrainingError, match="belongs to another spec"):
        light(tiny | {"patience": 4}, resume=path)


def test_choices_that_only_a_later_release_knows_are_left_alone(light: Any, tiny: dict[str, Any]) -> None:
    """They failed the job: a worker of the version before could not read what a newer one had chosen."""
    _, whole = light(tiny)
    path = whole.checkpoints[-2].path
    rewrite(path, choices={"compiled": True})
    _, rest = light(tiny, resume=path)
    assert dict(rest.events)["choices_changed"]["before"]["compiled"] is True


def later_checkpoint(folder: Path) -> Path:
    path = shutil.copy(MIDDLE, folder / "checkpoint-001.pt")
    rewrite(path, version=checkpoint.VERSION + 1)
    return path


def test_a_checkpoint_of_a_later_version_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, out = str(FIRST / "specs" / "paused.yaml"), str(tmp_path / "out")
    later = str(later_checkpoint(tmp_path))
    assert __main__.main([spec, "--out", out, "--data", str(tmp_path), "--no-download", "--resume", later]) == 1
    said = capsys.readouterr().err
    assert "failed (bad_checkpoint)" in said
    assert f"of version {checkpoint.VERSION + 1}, and this release reads version {checkpoint.VERSION}; go on" in said


def test_the_command_refuses_a_later_spec_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"spec_version: {SPEC_VERSION + 1}\n{written('waits')}")
    assert __main__.main([str(path), "--out", str(tmp_path / "out")]) == 2
    assert f"job.yaml: spec_version: is {SPEC_VERSION + 1}; this version" in capsys.readouterr().err
