"""What teachers said is in the cache for the next job, under all that decides it, whole or not at all."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import kdcore
from kdcore import keeping, reuse, train
from kdcore.data import StoredRows
from kdcore.errors import TrainingError
from kdcore.models.mlp import MLP, MLPConfig
from kdcore.opening import choose_here
from kdcore.plan import make_plan
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import SpecError, parse_spec
from tests.disks import files_of_at_most

SAMPLES = 200


@pytest.fixture
def given(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A job with a teacher from a file, and no augmentation."""
    torch.manual_seed(1)
    save_file(MLPConfig(hidden=[24]).build((1, 8, 8), 10).state_dict(), tmp_path / "teacher.safetensors")
    tiny["teachers"] = [{"model": {"type": "mlp", "hidden": [24]}, "weights": {"file": "teacher.safetensors"}}]
    tiny["baseline"] = False
    del tiny["stages"][0]["augment"]
    return tiny


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many training samples a frozen teacher was asked about, call by call."""
    calls: list[int] = []
    original = MLP.views

    def watched(self: MLP, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        if not next(self.parameters()).requires_grad and len(inputs) not in (1, 144, 145):  # its shapes, and validation
            calls.append(len(inputs))
        return original(self, inputs)

    monkeypatch.setattr(MLP, "views", watched)
    return calls


Told = list[dict[str, Any]]


def told(reporter: RecordingReporter, event: str) -> Told:
    return [data for name, data in reporter.events if name == event]


def test_the_next_job_asks_nothing(light: Any, given: dict[str, Any], asked: list[int], tmp_path: Path) -> None:
    alone, _ = light(given)
    shared = {"cache": tmp_path / "cache"}
    asked.clear()
    first, reporter = light(given, **shared)
    assert asked == [SAMPLES]
    of_it = {"stage": "distill-1", "teacher": "teacher-1", "views": ["logits"], "in": "memory"}
    assert told(reporter, "targets_kept") == [of_it | {"reused": False}]
    second, reporter = light({**given, "name": "another", "repeats": 2}, **shared)
    assert asked == [SAMPLES]
    assert told(reporter, "targets_kept") == [of_it | {"reused": True}]
    assert first["digests"] == alone["digests"]
    assert second["digests"]["student"] == alone["digests"]["student"]


def test_an_attempt_that_resumes_asks_nothing(
    light: Any, given: dict[str, Any], asked: list[int], tmp_path: Path
) -> None:
    shared = {"cache": tmp_path / "cache"}
    wanted, whole = light(given)
    paused = RecordingReporter(request="pause", request_at=whole.polls - 5)
    with pytest.raises(Interrupted):
        light(given, paused, **shared)
    asked.clear()
    found, _ = light(given, resume=paused.checkpoints[-1].path, **shared)
    assert asked == []
    assert found["digests"] == wanted["digests"]


def other_weights(document: dict[str, Any], root: Path) -> None:
    torch.manual_seed(2)
    save_file(MLPConfig(hidden=[24]).build((1, 8, 8), 10).state_dict(), root / "teacher.safetensors")


def other_classes(document: dict[str, Any], root: Path) -> None:
    document["teachers"][0]["classes"] = [str(digit) for digit in reversed(range(10))]


def other_data(document: dict[str, Any], root: Path) -> None:
    document["data"]["train_samples"] = 199


def other_split(document: dict[str, Any], root: Path) -> None:
    document["data"]["validation"] = 145


def other_view(document: dict[str, Any], root: Path) -> None:
    document["teachers"][0]["view"] = {"type": "picture", "normalise": "none"}


def other_names(document: dict[str, Any], root: Path) -> None:
    document["stages"][0]["losses"] = [{"type": "hint", "student_layer": "hidden_1", "teacher_layer": "hidden_1"}]


def other_precision(document: dict[str, Any], root: Path) -> None:
    document["precision"] = "bf16"


def fixed_views(document: dict[str, Any], root: Path) -> None:
    document["stages"][0]["augment"] = {"jitter": 1, "views": 1}


CHANGES = [
    other_weights, other_classes, other_data, other_split, other_view, other_names, other_precision, fixed_views
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_another_question_is_asked(
    light: Any, given: dict[str, Any], asked: list[int], tmp_path: Path, change: Callable[[dict[str, Any], Path], None]
) -> None:
    light(given, cache=tmp_path / "cache")
    asked.clear()
    change(given, tmp_path)
    light(given, cache=tmp_path / "cache")
    assert sum(asked) >= 199
    asked.clear()
    light(given, cache=tmp_path / "cache")
    assert asked == []


@pytest.mark.parametrize("seed", [0, 1])
def test_fixed_views_of_another_seed_are_others(
    light: Any, given: dict[str, Any], asked: list[int], tmp_path: Path, seed: int
) -> None:
    fixed_views(given, tmp_path)
    light(given, cache=tmp_path / "cache")
    asked.clear()
    light({**given, "seed": seed}, cache=tmp_path / "cache")
    assert asked == ([SAMPLES] if seed else [])


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        ("threads", 2),
        ("channels_last", False),
        ("deterministic", False),
        ("products", "highest"),
        ("products", "medium"),
        ("at_once", 512),
    ],
)
def test_other_choices_ask_again(
    light: Any, given: dict[str, Any], asked: list[int], tmp_path: Path, choice: str, value: Any
) -> None:
    chosen = choose_here(parse_spec(given))
    if getattr(chosen, choice) == value:
        pytest.skip(f"on this processor {choice} is {value} anyway")
    light(given, choices=chosen, cache=tmp_path / "cache")
    asked.clear()
    light(given, choices=chosen.model_copy(update={choice: value}), cache=tmp_path / "cache")
    assert asked == [SAMPLES]


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (torch, "__version__", "2.99.0"),
        (kdcore, "__version__", "99.0"),
        (reuse, "cpu_name", lambda: "another processor"),
        (reuse, "_version", lambda package: "99.0"),
        (reuse, "FORM", 99),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_another_machine_or_release_asks_again(
    light: Any,
    given: dict[str, Any],
    asked: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    value: Any,
) -> None:
    chosen = choose_here(parse_spec(given))
    light(given, choices=chosen, cache=tmp_path / "cache")
    asked.clear()
    monkeypatch.setattr(owner, name, value)
    light(given, choices=chosen, cache=tmp_path / "cache")
    assert asked == [SAMPLES]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_beyond_memory_they_are_read_from_a_file(
    light: Any, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    given["precision"] = precision
    hint = {"type": "hint", "student_layer": "hidden_1", "teacher_layer": "hidden_1"}
    given["stages"][0]["losses"].append(hint)
    wanted, _ = light(given)
    chosen = choose_here(parse_spec(given)).model_copy(update={"keep_bytes": 0, "spill_bytes": 2**20})
    seen = []
    original = train.stage_targets

    def watched(*given: Any) -> Any:
        seen.append(original(*given))
        return seen[-1]

    monkeypatch.setattr(train, "stage_targets", watched)
    found, reporter = light(given, choices=chosen, cache=tmp_path / "cache")
    assert {type(view) for view in seen[0].kept.values()} == {StoredRows}
    assert told(reporter, "targets_kept")[0]["in"] == "file"
    assert found["digests"] == wanted["digests"]
    _, reporter = light(given, choices=chosen)  # nowhere to put it
    assert "no cache" in told(reporter, "targets_not_kept")[0]["reason"]
    _, reporter = light(given, choices=chosen.model_copy(update={"spill_bytes": 1}), cache=tmp_path / "cache")
    assert "there is room for 1" in told(reporter, "targets_not_kept")[0]["reason"]


def test_a_choice_of_half_of_the_cache(given: dict[str, Any], tmp_path: Path) -> None:
    spec = parse_spec(given)
    assert choose_here(spec).spill_bytes == 0
    assert choose_here(spec, cache=tmp_path / "not" / "yet", cache_bytes=2**24).spill_bytes == 2**23
    assert choose_here(spec.model_copy(update={"keep_targets": False}), cache=tmp_path).spill_bytes == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from kdcore import train
from kdcore.models.mlp import MLP
from kdcore.opening import choose_here
from kdcore.reporter import RecordingReporter
from kdcore.spec import parse_spec

root, original, calls = Path(sys.argv[2]), MLP.views, []

def killed(self, inputs):
    calls.append(len(inputs))
    if calls.count(50) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, inputs)

MLP.views, spec, cache = killed, parse_spec(sys.argv[1]), root / "cache"
choices = choose_here(spec, cache=cache).model_copy(update={"at_once": 50})
train.run(
    spec, data_root=root, out=root / "out", cache=cache, reporter=RecordingReporter(), choices=choices, download=False
)
"""


@pytest.mark.timeout(600)
def test_a_process_that_is_killed_while_it_writes_leaves_nothing_to_be_read(
    light: Any, given: dict[str, Any], asked: list[int], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    fifty = choose_here(parse_spec(given), cache=cache).model_copy(update={"at_once": 50})
    wanted, _ = light(given, choices=fifty)
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(given), str(tmp_path)], timeout=300)
    assert done.returncode == -signal.SIGKILL
    left = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert [path.suffix for path in left] == [".part"]
    asked.clear()
    found, _ = light(given, choices=fifty, cache=cache)
    assert asked == [50, 50, 44, *[50] * 4]  # of the validation split, then of all samples
    assert found["digests"] == wanted["digests"]
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [""]


def flipped(folder: Path) -> None:
    path = folder / "0.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def cut(folder: Path) -> None:
    path = folder / "0.npy"
    path.write_bytes(path.read_bytes()[:-8])


def gone(folder: Path) -> None:
    (folder / "0.npy").unlink()


def unlisted(folder: Path) -> None:
    (folder / reuse.CONTENTS).write_text("[")


@pytest.mark.parametrize("damage", [flipped, cut, gone, unlisted], ids=lambda damage: damage.__name__)
def test_what_is_damaged_is_made_again(
    light: Any, given: dict[str, Any], asked: list[int], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    wanted, _ = light(given, cache=tmp_path / "cache")
    (folder,) = (tmp_path / "cache").glob("targets-*[0-9a-f]")
    damage(folder)
    asked.clear()
    found, _ = light(given, cache=tmp_path / "cache")
    assert asked == [SAMPLES]
    assert found["digests"] == wanted["digests"]
    reuse.check(folder)


@pytest.mark.parametrize("spilled", [False, True])
def test_a_full_disk_fails_no_job(
    light: Any, given: dict[str, Any], asked: list[int], tmp_path: Path, spilled: bool
) -> None:
    wanted, _ = light(given)
    chosen = choose_here(parse_spec(given))
    if spilled:
        chosen = chosen.model_copy(update={"keep_bytes": 0, "spill_bytes": 2**20})
    given["checkpoint"] = {"every_seconds": 3600.0}
    asked.clear()
    reporter = RecordingReporter()
    # Less than 200 * 10 * 4 bytes; no checkpoint is written before the last stage ends.
    with files_of_at_most(6000), pytest.raises(TrainingError, match="could not be written"):
        light(given, choices=chosen, reporter=reporter, cache=tmp_path / "cache")
    assert asked == [SAMPLES, *[48, 48, 48, 48, 8] * 2] if spilled else [SAMPLES, SAMPLES]
    event = "targets_not_kept" if spilled else "not_cached"
    assert told(reporter, event)[0]["reason"] == "File too large"
    found, reporter = light(given, choices=chosen, cache=tmp_path / "small", cache_bytes=100)
    assert "there is room for 100" in told(reporter, event)[0]["reason"]
    for name, weights in found["models"]["student"].items():
        torch.testing.assert_close(weights, wanted["models"]["student"][name], rtol=1e-4, atol=1e-5)
    if not spilled:  # else the teacher is asked in every step: another order of sums
        assert found["digests"] == wanted["digests"]


def test_a_fixed_number_of_views_is_kept(light: Any, given: dict[str, Any], asked: list[int]) -> None:
    given["stages"][0] |= {"epochs": 5, "augment": {"crop": 1, "flip": True, "jitter": 1, "views": 2}}
    kept, whole = light(given)
    assert asked == [SAMPLES] * 2
    asked.clear()
    live, _ = light({**given, "keep_targets": False})
    assert asked == [48, 48, 48, 48, 8] * 5
    for name, weights in kept["models"]["student"].items():
        torch.testing.assert_close(weights, live["models"]["student"][name], rtol=1e-4, atol=1e-5)
    reporter = RecordingReporter(request="pause", request_at=whole.polls - 8)
    with pytest.raises(Interrupted):
        light(given, reporter)
    found, _ = light(given, resume=reporter.checkpoints[-1].path)
    assert found["digests"] == kept["digests"]
    given["stages"][0]["augment"]["views"] = None
    fresh, _ = light(given)
    assert fresh["digests"] != kept["digests"]


def test_views_are_of_augmentation() -> None:
    with pytest.raises(SpecError, match="nothing changes the samples") as caught:
        parse_spec({"data": {"type": "digits"}, "teachers": [], "student": {"model": {"type": "mlp"}},
                    "stages": [{"augment": {"views": 2}}]})  # fmt: skip
    assert caught.value.errors[0][0] == ("stages", 0, "augment", "views")


def test_the_plan_says_what_is_kept_and_why_not(given: dict[str, Any]) -> None:
    stage = make_plan(parse_spec(given)).stages[-1]
    assert (stage.target_bytes, stage.target_views, stage.asked_because) == (
        SAMPLES * 40,
        ["teacher-1/logits"],
        None,
    )
    given["stages"][0]["augment"] = {"jitter": 1, "views": 3}
    assert make_plan(parse_spec(given)).stages[-1].target_bytes == 3 * SAMPLES * 40
    given["stages"][0]["augment"]["views"] = None
    stage = make_plan(parse_spec(given)).stages[-1]
    assert (stage.target_bytes, stage.target_views) == (None, [])
    assert "`views`" in str(stage.asked_because)
    assert "keep_targets" in str(make_plan(parse_spec({**given, "keep_targets": False})).stages[-1].asked_because)


def test_what_an_operator_installed_is_not_kept_for_others(
    light: Any, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "MOST_WRITTEN", SAMPLES * 40 - 1)  # nor what takes longer to write than to ask
    light(given, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(keeping, "MOST_WRITTEN", SAMPLES * 40)
    monkeypatch.setattr(MLPConfig, "__module__", "somebody.elses")
    light(given, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
