"""What teachers say is kept where their inputs repeat: the same student, and a teacher that is asked once."""

from typing import Any

import pytest
import torch

from kdcore import train
from kdcore.models.mlp import MLP
from kdcore.opening import choose_here
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import parse_spec

SAMPLES = 200


@pytest.fixture
def still(tiny: dict[str, Any]) -> dict[str, Any]:
    """A job whose stages do not augment; its teacher is as wide as no other network."""
    tiny["teachers"][0]["model"] = {"type": "mlp", "hidden": [24]}
    del tiny["stages"][0]["augment"]
    tiny["baseline"] = False
    return tiny


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples a frozen teacher was asked about, call by call."""
    calls: list[int] = []
    original = MLP.views

    def watched(self: MLP, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        if not next(self.parameters()).requires_grad and len(inputs) > 1:  # one sample: a look at its shapes
            calls.append(len(inputs))
        return original(self, inputs)

    monkeypatch.setattr(MLP, "views", watched)
    return calls


def training_calls(asked: list[int], validation: int = 144) -> list[int]:
    """Without those of validation."""
    return [size for size in asked if size != validation]


def test_a_teacher_is_asked_once_about_each_sample(light: Any, still: dict[str, Any], asked: list[int]) -> None:
    kept, _ = light(still)
    assert training_calls(asked) == [SAMPLES]
    asked.clear()
    live, _ = light({**still, "keep_targets": False})
    assert training_calls(asked) == [48, 48, 48, 48, 8] * 2
    for name, weights in kept["models"]["student"].items():
        torch.testing.assert_close(weights, live["models"]["student"][name], rtol=1e-4, atol=1e-5)


def test_later_epochs_stages_and_repeats_read_what_is_kept(light: Any, still: dict[str, Any], asked: list[int]) -> None:
    hint = [{"type": "hint", "student_layer": "hidden_1", "teacher_layer": "hidden_1"}]
    still["stages"] = [still["stages"][0], {**still["stages"][0], "losses": hint}, still["stages"][0]]
    still["repeats"] = 2
    light(still)
    assert training_calls(asked) == [SAMPLES] * 2  # for the logits, and for the hint's layer
    asked.clear()
    both = SAMPLES * (24 + 10) * 4
    light(still, choices=choose_here(parse_spec(still)).model_copy(update={"keep_bytes": both - 1}))
    # The hint does not fit beside the logits, which it reads as well: it asks in every step.
    assert training_calls(asked) == [SAMPLES] + [48, 48, 48, 48, 8] * 4
    asked.clear()
    still["stages"] = [{**still["stages"][0], "losses": [{"type": "kd", "teacher": place}]} for place in (1, 2, 1)]
    still["teachers"] *= 2
    light(still, choices=choose_here(parse_spec(still)).model_copy(update={"keep_bytes": SAMPLES * 10 * 4}))
    assert (
        training_calls(asked) == [SAMPLES] * 5
    )  # each makes room for the next; the second repeat begins with what the first left


@pytest.mark.parametrize(
    "change",
    [{"augment": {"jitter": 1}}, {"augment": {"flip": True}}],
    ids=lambda change: next(iter(change["augment"])),
)
def test_nothing_is_kept_where_inputs_change(
    light: Any, still: dict[str, Any], asked: list[int], change: dict[str, Any]
) -> None:
    still["stages"][0] |= change
    light(still)
    assert max(training_calls(asked)) == 48


@pytest.mark.parametrize(("room", "calls"), [(0, 10), (SAMPLES * 10 * 4 - 1, 10), (SAMPLES * 10 * 4, 1)])
def test_nothing_is_kept_that_does_not_fit(
    light: Any, still: dict[str, Any], asked: list[int], room: int, calls: int
) -> None:
    light(still, choices=choose_here(parse_spec(still)).model_copy(update={"keep_bytes": room}))
    assert len(training_calls(asked)) == calls


def test_choices_of_an_earlier_version_keep_nothing(light: Any, still: dict[str, Any], asked: list[int]) -> None:
    given = choose_here(parse_spec(still))
    light(still, choices=type(given).model_validate(given.model_dump(exclude={"keep_bytes"})))
    assert max(training_calls(asked)) == 48


def test_a_choice_of_half_of_what_is_left(monkeypatch: pytest.MonkeyPatch, still: dict[str, Any]) -> None:
    spec = parse_spec(still)
    total = choose_here(spec)  # on this machine there is room
    assert total.keep_bytes > 2**20
    monkeypatch.setattr("kdcore.opening.room_here", lambda limit: None)
    assert choose_here(spec).keep_bytes == 0
    monkeypatch.setattr("kdcore.opening.room_here", lambda limit: 1)
    assert choose_here(spec).keep_bytes == 0


def test_each_of_several_teachers_is_kept_under_its_own_place(light: Any, still: dict[str, Any]) -> None:
    still["teachers"].append({"model": {"type": "mlp", "hidden": [16]}, "train": still["teachers"][0]["train"]})
    still["stages"][0]["losses"] = [{"type": "kd", "weight": 0.3}, {"type": "kd", "teacher": 2}]
    kept, live = (light({**still, "keep_targets": keep})[0] for keep in (True, False))
    for name, weights in kept["models"]["student"].items():
        torch.testing.assert_close(weights, live["models"]["student"][name], rtol=1e-4, atol=1e-5)


def test_a_transfer_set_reads_its_own_samples(light: Any, still: dict[str, Any]) -> None:
    still["transfer"] = {"without_classes": ["3", "7"]}
    kept, live = (light({**still, "keep_targets": keep})[0] for keep in (True, False))
    for name, weights in kept["models"]["student"].items():
        torch.testing.assert_close(weights, live["models"]["student"][name], rtol=1e-4, atol=1e-5)


def test_bf16_is_kept_as_bf16(light: Any, still: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = train.stage_targets

    def watched(*given: Any) -> Any:
        found = original(*given)
        seen.extend(view.dtype for view in found.kept.values())
        return found

    monkeypatch.setattr(train, "stage_targets", watched)
    light({**still, "precision": "bf16"})
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("at", [1, 2])
def test_a_pause_in_the_midst_changes_nothing(light: Any, still: dict[str, Any], at: int) -> None:
    wanted, whole = light(still)
    reporter = RecordingReporter(request="pause", request_at=whole.polls - 5 * at)
    with pytest.raises(Interrupted):
        light(still, reporter)
    found, _ = light(still, resume=reporter.checkpoints[-1].path)
    assert found["digests"] == wanted["digests"]


def test_a_pause_while_they_are_asked_loses_no_step(light: Any, still: dict[str, Any]) -> None:
    """Half of the samples are asked about when the pause comes, after a resume from the middle of the stage."""
    fifty = choose_here(parse_spec(still)).model_copy(update={"at_once": 50})
    wanted, whole = light(still, choices=fifty)
    first = RecordingReporter(request="pause", request_at=whole.polls - 5)
    with pytest.raises(Interrupted):
        light(still, first, choices=fifty)
    second = RecordingReporter(request="pause", request_at=3)
    with pytest.raises(Interrupted):
        light(still, second, resume=first.checkpoints[-1].path)
    found, _ = light(still, resume=second.checkpoints[-1].path)
    assert found["digests"] == wanted["digests"]
