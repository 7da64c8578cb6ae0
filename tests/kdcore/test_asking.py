"""A teacher over HTTP as the library sees it: asked once about each sample, whatever happens meanwhile."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcore import train
from kdcore.data import upload as upload_module
from kdcore.data.stored import StoredRows
from kdcore.errors import TrainingError
from kdcore.models import HttpConfig, MLPConfig
from kdcore.plan import make_plan
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import SpecError, parse_spec
from kdcore.train import run
from kdcore.uploads import DatasetOptions, check_dataset

URL = "http://127.0.0.1:1/v1/models/digits:predict"
CLASSES = [str(digit) for digit in range(10)]
SAMPLES = 200 + 50 + 360  # training, validation, test


def document(**teacher: Any) -> dict[str, Any]:
    model = {"type": "http", "url": URL, "batch": 100, **teacher.pop("model", {})}
    return {
        "data": {"type": "digits", "train_samples": 200, "validation": 50},
        "teachers": [{"model": model, **teacher}],
        "student": {"model": {"type": "mlp", "hidden": [8]}},
        "stages": [{"epochs": 2, "batch_size": 32}],
    }


class Answers:
    """A network that is asked in place of an address, and counts."""

    def __init__(self, outputs: list[int] | None = None, fail_after: float = math.inf) -> None:
        torch.manual_seed(1)
        self.network = MLPConfig(hidden=[12]).build((1, 8, 8), 10).eval()
        self.outputs, self.fail_after = outputs, fail_after
        self.asked = 0

    def __call__(self, config: HttpConfig, instances: list[Any], poll: Any) -> Any:
        if self.asked >= self.fail_after:
            raise TrainingError("teacher_away", "gone", "system")
        assert len(instances) <= config.batch
        self.asked += len(instances)
        poll()
        with torch.no_grad():
            logits = self.network(torch.tensor(instances))
        return (logits if self.outputs is None else logits[:, self.outputs]).tolist()


def test_the_answers_are_memory_too() -> None:
    spec = parse_spec(document())
    facts = spec.data.facts()
    assert make_plan(spec).memory.data == (64 + 8 + 4 * 10) * (facts.train + facts.validation + facts.test)


def trained(ask: Any, folder: Path, spec: dict[str, Any] | None = None) -> Any:
    reporter = RecordingReporter()
    result = run(
        parse_spec(spec or document()), data_root=folder, out=folder / "out", reporter=reporter, ask=ask,
        cache=folder / "cache", download=False,
    )  # fmt: skip
    return result, reporter


def test_each_sample_is_asked_about_once_whatever_stops_the_job(light: Any, tmp_path: Path) -> None:
    whole = Answers()
    wanted, reporter = light(document(), ask=whole, cache=tmp_path / "whole")
    assert whole.asked == SAMPLES
    assert dict(reporter.events)["teacher_asked"] == {"teacher": "teacher-1", "samples": SAMPLES}
    shared = {"cache": tmp_path / "cache"}
    away, paused, back, again = Answers(fail_after=300), Answers(), Answers(), Answers()
    with pytest.raises(TrainingError, match="gone"):
        light(document(), ask=away, **shared)
    with pytest.raises(Interrupted):
        light(document(), RecordingReporter(request="pause", request_at=4), ask=paused, **shared)
    found, reporter = light(document(), ask=back, **shared)
    assert (away.asked, away.asked + paused.asked + back.asked) == (350, SAMPLES)
    assert paused.asked > 0
    assert dict(reporter.events)["teacher_asked"]["samples"] == back.asked
    assert found["digests"] == wanted["digests"]
    light(document(), ask=again, **shared)
    assert again.asked == 0


def test_it_teaches_what_the_network_itself_would(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    ask = Answers()
    save_file(ask.network.state_dict(), tmp_path / "teacher.safetensors")
    known = {"model": {"type": "mlp", "hidden": [12]}, "weights": {"file": "teacher.safetensors"}}
    by_network, _ = trained(None, tmp_path, document() | {"teachers": [known]})
    by_http, _ = trained(ask, tmp_path)
    for key in ("accuracy", "agreement", "predictive_kl", "nll"):
        assert by_http["student"][key] == pytest.approx(by_network["student"][key], rel=1e-3, abs=1e-6), key
    assert by_http["teacher"]["accuracy"] == by_network["teacher"]["accuracy"]
    assert "asked over HTTP about each sample" in (tmp_path / "out" / "README.md").read_text()


def test_more_classes_in_another_order_are_cut_by_name(tmp_path: Path) -> None:
    turned = [3, 0, 9, 8, 7, 6, 5, 4, 2, 1]
    ask = Answers(outputs=[*turned, 0])
    classes = [*(CLASSES[place] for place in turned), "none of them"]
    found, _ = trained(ask, tmp_path, document(classes=classes))
    straight, _ = trained(Answers(), tmp_path / "straight")
    assert found["teacher"]["accuracy"] == straight["teacher"]["accuracy"]
    assert found["student"]["agreement"] == pytest.approx(straight["student"]["agreement"], abs=0.01)


def test_probabilities_become_logits(tmp_path: Path) -> None:
    class Probable(Answers):
        def __call__(self, config: HttpConfig, instances: list[Any], poll: Any) -> Any:
            return torch.tensor(super().__call__(config, instances, poll)).softmax(1).tolist()

    found, _ = trained(Probable(), tmp_path, document(model={"gives": "probabilities"}))
    straight, _ = trained(Answers(), tmp_path / "straight")
    assert found["teacher"]["nll"] == pytest.approx(straight["teacher"]["nll"], rel=1e-5)


@pytest.mark.parametrize(
    ("answer", "gives", "message"),
    [
        ([[0.0] * 10], "logits", "has the shape"),
        ([[0.0] * 9] * 100, "logits", "name all its classes"),
        ([[0.0] * 9 + [math.nan]] * 100, "logits", "NaN"),
        ([[0.0] * 9 + [1e300]] * 100, "logits", "NaN or infinity"),
        ([["a"] * 10] * 100, "logits", "has the shape"),
        ("text", "logits", "has the shape"),
        ([[0.0] * 10] * 100, "probabilities", "whose sum is 1"),
    ],
)
def test_answers_that_are_none(light: Any, tmp_path: Path, answer: Any, gives: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        light(document(model={"gives": gives}), ask=lambda *_: answer, cache=tmp_path / "cache")
    assert (caught.value.code, caught.value.kind) == ("bad_teacher_answer", "user")


def test_without_the_service_nobody_can_be_asked(light: Any) -> None:
    with pytest.raises(TrainingError, match="only the service"):
        light(document())


def test_other_questions_have_other_answers(light: Any, tmp_path: Path) -> None:
    same = {"model": {"gives": "logits"}}
    light(document(), ask=Answers(), cache=tmp_path / "cache")
    for changes in ({"model": {"url": f"{URL}2"}}, {"view": {"type": "resize", "size": 8}}, same):
        ask = Answers()
        light(document(**changes), ask=ask, cache=tmp_path / "cache")
        assert ask.asked == (0 if changes == same else SAMPLES)
    ask = Answers()
    fewer = document() | {"data": {"type": "digits", "train_samples": 100, "validation": 50}}
    light(fewer, ask=ask, cache=tmp_path / "cache")
    assert ask.asked == SAMPLES - 100


def test_without_room_for_the_answers_nothing_is_asked(light: Any, tmp_path: Path) -> None:
    ask, needed = Answers(), SAMPLES * (4 * 10 + 1)
    for cache_bytes, code, kind in ((needed - 1, "bad_data", "user"), (needed, "disk", "system")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kdcore.reuse.disk_room", lambda _: needed - 1)
            with pytest.raises(TrainingError, match="teacher-1") as caught:
                light(document(), ask=ask, cache=tmp_path / "cache", cache_bytes=cache_bytes)
        assert (caught.value.code, caught.value.kind) == (code, kind)
    assert ask.asked == 0
    assert list((tmp_path / "cache").glob("*/*")) == []
    old = tmp_path / "cache" / "prepared"
    old.mkdir()
    (old / "file").write_bytes(b"x" * 100)
    light(document(), ask=ask, cache=tmp_path / "cache", cache_bytes=needed + 10_000)
    assert (ask.asked, old.exists()) == (SAMPLES, True)
    light(document() | {"seed": 1}, ask=Answers(), cache=tmp_path / "cache", cache_bytes=needed + 10_000)
    assert old.exists()  # nothing was written
    light(document(model={"url": f"{URL}2"}), ask=Answers(), cache=tmp_path / "cache", cache_bytes=needed + 10_000)
    assert not old.exists()  # it went before the new ones came


@pytest.mark.parametrize("classes", [None, [*reversed(CLASSES), "none of them"]])
def test_what_is_said_of_samples_in_a_file_stays_in_one(
    light: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: list[str] | None
) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (300, 8, 8)).astype(np.uint8)
    path, name = tmp_path / "pictures.npz", "ds_" + "0" * 26
    np.savez(path, inputs=inputs, labels=np.arange(300) % 10)
    profile = check_dataset(path, DatasetOptions(classes=CLASSES), out=tmp_path / "page").model_dump(mode="json")
    own = document(**({"classes": classes} if classes else {}))
    own["data"] = {"type": "upload", "dataset": name, "profile": profile, "validation": 50}
    outputs = [*range(9, -1, -1), 0] if classes else None
    found, examine = {}, train.examine_teachers
    for resident in (True, False):
        monkeypatch.setattr(upload_module, "RESIDENT", 2**28 if resident else 0)
        answers: list[Any] = []
        monkeypatch.setattr(
            train, "examine_teachers", lambda job, kept=answers: (kept.append(job.answers[0]), examine(job))
        )
        there = {"uploads": {name: path}, "cache": tmp_path / f"cache-{resident}"}
        result, _ = light(own, ask=Answers(outputs), **there)
        assert all(isinstance(each, StoredRows) != resident for each in answers[0].values())
        assert make_plan(parse_spec(own)).memory.data >= (300 * 4 * 10 if resident else 0)
        found[resident] = result["digests"], {split: each[:].tolist() for split, each in answers[0].items()}
    assert found[True] == found[False]
    assert make_plan(parse_spec(own)).memory.data == 300 * 8  # the labels


def test_the_plan_refuses_what_it_is_not() -> None:
    for field, value in (("weights", {"file": "a.safetensors"}), ("train", {"epochs": 1})):
        with pytest.raises(SpecError, match="is no network") as caught:
            make_plan(parse_spec(document(**{field: value})))
        assert caught.value.errors[0][0] == ("teachers", 0, field)
    for url in (
        "ftp://a/b",
        "http://a@b/c",
        "http://a b/",
        "http://a/#b",
        "http://a/\x01",
        "http://a/\u00e9",
        "http://",
    ):
        with pytest.raises(SpecError) as caught:
            parse_spec(document(model={"url": url}))
        assert caught.value.errors[0][0] == ("teachers", 0, "model", "url")


def test_its_files_are_plain_numbers(light: Any, tmp_path: Path) -> None:
    light(document(), ask=Answers(), cache=tmp_path / "cache")
    (rows,) = (tmp_path / "cache").glob("answers-*/logits.npy")
    assert np.load(rows, allow_pickle=False).shape == (SAMPLES, 10)


def test_probabilities_of_another_task_are_refused() -> None:
    """Their logarithm is no logit of a decision for each class."""
    data = {"type": "synthetic", "task": "multi_label"}
    several = document(model={"gives": "probabilities"}) | {
        "data": data,
        "stages": [{"losses": [{"type": "binary_kd"}]}],
    }
    with pytest.raises(SpecError, match="do not become its logits") as caught:
        make_plan(parse_spec(several))
    assert caught.value.errors[0][0] == ("teachers", 0, "model", "gives")
