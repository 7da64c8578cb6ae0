"""The loop: what it trains, what it must leave alone, what it reports, and how it fails."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdcore import train
from kdcore.augment import Draws
from kdcore.data import Places
from kdcore.errors import TrainingError
from kdcore.job import Job
from kdcore.losses import Batch, cross_entropy
from kdcore.losses.kd import KD
from kdcore.opening import choose_here, open_job
from kdcore.recorder import Recorder, term_names
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.seeds import derive, epoch_order
from kdcore.spec import parse_spec
from kdcore.targets import Targets
from kdcore.teacher import assert_frozen, freeze


def named(reporter: RecordingReporter, stage: str, name: str) -> list[tuple[int, float]]:
    return [(step, values[name]) for s, step, values in reporter.points if s == stage and name in values]


def opened(document: dict[str, Any], tmp_path: Path) -> Job:
    return open_job(
        parse_spec(document),
        RecordingReporter(),
        places=Places(tmp_path),
        checkpoints=tmp_path / "checkpoints",
        choices=None,
        resume=None,
        teacher_weights={},
    )


def test_equal_seeds_give_equal_bytes_and_others_do_not(light: Any, tiny: dict[str, Any]) -> None:
    first, reported = light(tiny)
    torch.rand(5)
    second, again = light(tiny)
    assert first["digests"] == second["digests"]
    assert reported.points == again.points
    assert light({**tiny, "seed": 1})[0]["digests"]["student"] != first["digests"]["student"]


def test_the_baseline_is_the_student_with_its_losses_replaced(light: Any, tiny: dict[str, Any]) -> None:
    tiny["stages"][0]["losses"] = [{"type": "cross_entropy"}]
    left, reporter = light(tiny)
    assert left["digests"]["baseline"] == left["digests"]["student"]  # initial weights, order, dropout, augmentation
    assert named(reporter, "baseline", "train/loss") == named(reporter, "distill-1", "train/loss")
    tiny["stages"][0]["losses"] = [{"type": "cross_entropy"}, {"type": "kd", "weight": 1e-3}]
    assert light(tiny)[0]["digests"]["baseline"] == left["digests"]["baseline"]


def test_a_weight_of_zero_is_as_good_as_no_term(light: Any, tiny: dict[str, Any]) -> None:
    tiny["stages"][0]["losses"] = [{"type": "cross_entropy"}, {"type": "kd", "weight": 0.0}]
    left, _ = light(tiny)
    assert left["digests"]["baseline"] == left["digests"]["student"]


def test_no_baseline_where_none_is_wanted(light: Any, tiny: dict[str, Any]) -> None:
    left, reporter = light({**tiny, "baseline": False})
    assert reporter.stages == ["teacher-1", "distill-1"]
    assert set(left["models"]) == {"teacher-1", "student"}


def test_the_first_step_is_that_of_plain_torch(light: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    """One SGD step worked out apart: the order, the normalisation, the sum of the terms, the update."""
    tiny["student"]["model"]["dropout"] = 0.0
    tiny["baseline"] = False
    tiny["stages"] = [
        {"epochs": 1, "batch_size": 200, "optimizer": {"type": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}}
    ]
    tiny["stages"][0]["losses"] = [{"type": "cross_entropy", "weight": 0.3}, {"type": "kd", "weight": 0.7}]
    left, reporter = light(tiny)

    job = opened(tiny, tmp_path)
    student = job.network("student")
    teacher = job.network("teacher")
    teacher.load_state_dict(left["models"]["teacher-1"])
    order = epoch_order(200, 0, "student", 0, 0)
    facts = job.data.facts
    pixels = job.data.train.inputs[order].float() / job.data.scale
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (facts.mean, facts.std))
    inputs, labels = (pixels - mean) / std, job.data.train.labels[order]
    s, t = student(inputs), teacher.eval()(inputs).detach()
    hard = nn.functional.cross_entropy(s, labels)
    soft = 16 * (t.div(4).softmax(1) * (t.div(4).log_softmax(1) - s.div(4).log_softmax(1))).sum() / 200
    (0.3 * hard + 0.7 * soft).backward()
    for name, parameter in student.named_parameters():
        assert torch.allclose(left["models"]["student"][name], parameter - 0.5 * parameter.grad, atol=1e-6)

    values = next(values for stage, _, values in reporter.points if stage == "distill-1")
    assert values["train/cross_entropy"] == pytest.approx(hard.item(), rel=1e-5)
    assert values["train/kd"] == pytest.approx(soft.item(), rel=1e-5)
    assert values["train/kd/weighted"] == pytest.approx(0.7 * soft.item(), rel=1e-5)
    assert values["train/loss"] == pytest.approx((0.3 * hard + 0.7 * soft).item(), rel=1e-5)
    assert values["train/lr"] == 0.5


def test_the_teacher_is_frozen_in_every_step(light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dropout is 0.9 and its batch norm would drift: in train mode every target would be another."""
    tiny["teachers"][0]["model"] = {"type": "cnn", "channels": [4], "hidden": [16], "batch_norm": True, "dropout": 0.9}
    tiny["baseline"] = False
    kept: list[Job] = []
    seen = 0
    original = Targets.of

    def checked(self: Targets, batch: Tensor, inputs: Tensor, version: int) -> Any:
        nonlocal seen
        found = original(self, batch, inputs, version)
        for views, teacher in zip(found, self.teachers.values(), strict=True):
            seen += 1
            assert_frozen(teacher)
            assert not any(view.requires_grad for view in views.values())
            fresh = kept[-1].placed(kept[-1].finished("teacher-1"))
            assert torch.equal(views["logits"], fresh(self.readers[0](inputs)))
        return found

    opening = train.open_job
    monkeypatch.setattr(train, "open_job", lambda *a, **k: kept.append(opening(*a, **k)) or kept[-1])
    monkeypatch.setattr(Targets, "of", checked)
    light(tiny)
    assert seen == 10
    state = kept[-1].teacher(0).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in kept[-1].state.models["teacher-1"].items())


def test_a_teacher_that_wakes_is_noticed(light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = freeze(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    assert_frozen(model)
    with pytest.raises(AssertionError, match="train mode"):
        assert_frozen(model.train())
    with pytest.raises(AssertionError, match="gradients"):
        assert_frozen(model.eval().requires_grad_())
    monkeypatch.setattr("kdcore.job.freeze", lambda network: network.train())
    for augmented in (True, False):
        if not augmented:
            del tiny["stages"][0]["augment"]
        with pytest.raises(AssertionError, match="train mode"):
            light(tiny)


def test_terms_with_parameters_train_with_the_student(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A term that must learn: the optimizer updates it, the checkpoint keeps it."""
    forward = KD.forward
    kept: list[nn.Module] = []

    def build(self: KD, config: Any) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.scale = nn.Parameter(torch.ones(()))
        kept.append(self)

    monkeypatch.setattr(KD, "__init__", build)
    monkeypatch.setattr(KD, "forward", lambda self, batch: forward(self, batch) * self.scale)
    _, reporter = light({**tiny, "checkpoint": {"every_steps": 4}})
    assert kept[-1].scale.item() != 1.0
    saved = [torch.load(c.path, weights_only=True)["running"] for c in reporter.checkpoints if c.path.exists()]
    assert any("1.scale" in running["terms"] for running in saved if running)


def test_which_points_are_kept(light: Any, tiny: dict[str, Any]) -> None:
    _, reporter = light(tiny, points=4)  # ceil(200 / 48) * 2 = 10 steps, so every third and the last
    assert [step for step, _ in named(reporter, "distill-1", "train/loss")] == [3, 6, 9, 10]
    assert [step for step, _ in named(reporter, "distill-1", "validation/accuracy")] == [5, 10]
    assert [step for step, _ in named(reporter, "distill-1", "validation/agreement")] == [5, 10]
    assert named(reporter, "baseline", "validation/agreement") == []
    names = {name for stage, _, values in reporter.points if stage == "distill-1" for name in values}
    assert names == {
        "train/cross_entropy", "train/cross_entropy/weighted", "train/kd", "train/kd/weighted", "train/loss",
        "train/lr", "train/gradient_norm", "validation/accuracy", "validation/top_k_accuracy",
        "validation/macro_f1", "validation/nll", "validation/ece",
        "validation/agreement", "validation/predictive_kl",
    }  # fmt: skip


def test_repeated_terms_have_names_of_their_own() -> None:
    spec = parse_spec(
        {
            "data": {"type": "digits"},
            "teachers": [{"model": {"type": "mlp"}}],
            "student": {"model": {"type": "mlp"}},
            "stages": [{"losses": [{"type": "kd"}, {"type": "cross_entropy"}, {"type": "kd", "temperature": 1.0}]}],
        }
    )
    assert term_names(spec.stages[0].losses) == ["kd", "cross_entropy", "kd-2"]


def test_the_learning_rate_follows_the_schedule(light: Any, tiny: dict[str, Any]) -> None:
    _, reporter = light(tiny)
    schedule = parse_spec(tiny).stages[0].schedule
    expected = [(step + 1, 0.1 * schedule.factor(step, 5, 10)) for step in range(10)]
    assert named(reporter, "distill-1", "train/lr") == expected


def test_gradients_are_clipped(light: Any, tiny: dict[str, Any]) -> None:
    """With plain SGD a step is no longer than lr times the clip."""
    sgd = {"type": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    tiny["stages"][0] |= {"epochs": 1, "batch_size": 200, "optimizer": sgd, "gradient_clip": 1e-3}
    del tiny["stages"][0]["schedule"]
    left, reporter = light(tiny)
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "weights", "student", 0))
        start = parse_spec(tiny).student.model.build((1, 8, 8), 10).state_dict()
    moved = math.sqrt(sum((left["models"]["student"][n] - start[n]).square().sum().item() for n in start))
    assert moved == pytest.approx(1e-3, rel=1e-2)
    assert named(reporter, "distill-1", "train/gradient_norm")[0][1] > 0.1


def test_the_best_epoch_is_kept_by_the_metric_that_was_asked_for(light: Any, tiny: dict[str, Any]) -> None:
    for metric, better in (("accuracy", max), ("top_k_accuracy", max), ("macro_f1", max), ("nll", min), ("ece", min)):
        tiny |= {"select_by": metric, "baseline": False}
        tiny["stages"][0]["epochs"] = 6
        left, reporter = light(tiny)
        values = [value for _, value in named(reporter, "distill-1", f"validation/{metric}")]
        assert left["selected"]["distill-1"]["epoch"] == values.index(better(values)) + 1
        assert left["selected"]["distill-1"][metric] == better(values)


def test_the_last_epoch_is_kept_where_that_was_asked_for(light: Any, tiny: dict[str, Any]) -> None:
    tiny |= {"select_by": "last"}
    tiny["stages"][0] |= {"epochs": 3, "optimizer": {"type": "sgd", "lr": 1e-12}}
    left, reporter = light(tiny)
    assert [stage["epoch"] == stage["epochs"] for stage in left["selected"].values()] == [True] * 3
    assert left["selected"]["distill-1"]["nll"] == named(reporter, "distill-1", "validation/nll")[-1][1]


def test_the_first_of_equal_epochs_is_the_best(light: Any, tiny: dict[str, Any]) -> None:
    tiny["stages"][0] |= {"epochs": 3, "optimizer": {"type": "sgd", "lr": 1e-12}}
    assert light(tiny)[0]["selected"]["distill-1"]["epoch"] == 1


def test_early_stopping_counts_epochs_that_did_not_improve(light: Any, tiny: dict[str, Any]) -> None:
    tiny["stages"][0] |= {"epochs": 50, "early_stopping": {"patience": 2, "min_delta": 100.0}}
    left, reporter = light(tiny)
    assert left["selected"]["distill-1"]["epochs"] == 3
    points = named(reporter, "distill-1", "validation/nll")
    assert len(points) == 3
    last = reporter.checkpoints[-1]
    assert (last.stage, last.epoch, last.step) == ("distill-1", 3, points[-1][0])  # where it stopped, not step 0


def test_a_second_stage_starts_from_the_last_weights_of_the_first(light: Any, tiny: dict[str, Any]) -> None:
    tiny["baseline"] = False
    tiny["stages"].append({**tiny["stages"][0], "epochs": 1, "optimizer": {"type": "sgd", "lr": 1e-12}})
    left, reporter = light(tiny)
    last = named(reporter, "distill-1", "validation/nll")[-1][1]
    assert named(reporter, "distill-2", "validation/nll")[0][1] == pytest.approx(last, rel=1e-4)
    assert left["selected"]["distill-2"]["epoch"] == 1


def test_a_loss_that_is_not_finite_fails_the_job_and_keeps_the_last_good_checkpoint(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = KD.forward, 0

    def broken(self: KD, *views: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(self, *views) * (float("nan") if calls == 7 else 1.0)

    monkeypatch.setattr(KD, "forward", broken)
    reporter = RecordingReporter()
    with pytest.raises(TrainingError, match="'kd' became nan at step 7 of stage 'distill-1'") as caught:
        light({**tiny, "checkpoint": {"every_steps": 2}}, reporter)
    assert (caught.value.code, caught.value.kind) == ("diverged", "user")
    assert reporter.checkpoints[-1].step == 6
    saved = torch.load(reporter.checkpoints[-1].path, weights_only=True)
    assert all(value.isfinite().all() for value in saved["running"]["model"].values())


@pytest.mark.parametrize(("clip", "what"), [(None, "a weight"), (1.0, "the gradient")])
def test_an_update_that_is_not_finite_never_reaches_a_checkpoint(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, clip: float | None, what: str
) -> None:
    """The loss is finite, its gradient is not: the loss tells only a step later, and a checkpoint lies between."""
    forward, calls = KD.forward, 0

    def broken(self: KD, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        zero = 0 * batch.student["logits"].sum()
        return forward(self, batch) + (zero.sqrt() if calls == 7 else zero)

    monkeypatch.setattr(KD, "forward", broken)
    tiny["stages"][0]["gradient_clip"] = clip
    reporter = RecordingReporter()
    with pytest.raises(TrainingError, match=f"{what} became nan at step 7 of stage 'distill-1'") as caught:
        light({**tiny, "checkpoint": {"every_steps": 1}}, reporter)
    assert caught.value.code == "diverged"
    assert reporter.checkpoints[-1].step == 6
    saved = torch.load(reporter.checkpoints[-1].path, weights_only=True)
    assert all(value.isfinite().all() for value in saved["running"]["model"].values())


def test_every_step_is_augmented_anew_and_validation_never(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    sizes: list[int] = []
    original = train.draw

    def watch(samples: int, config: Any, generator: torch.Generator) -> Draws:
        seeds.append(generator.initial_seed())
        sizes.append(samples)
        return original(samples, config, generator)

    monkeypatch.setattr(train, "draw", watch)
    light(tiny)
    teacher, baseline, student = seeds[:10], seeds[10:20], seeds[20:]
    assert baseline == student
    assert len(set(teacher + student)) == 20
    assert sizes == [48, 48, 48, 48, 8] * 6


def test_recorder_reads_in_batches_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcore.recorder.READ_SECONDS", 3600.0)
    monkeypatch.setattr("kdcore.recorder.READ_STEPS", 16)
    losses = parse_spec(
        {"data": {"type": "digits"}, "teachers": [{"model": {"type": "mlp"}}], "student": {"model": {"type": "mlp"}}}
    ).stages[0].losses  # fmt: skip
    reporter = RecordingReporter()
    recorder = Recorder(reporter, "s", losses, steps=40, points=40)
    for step in range(1, 21):
        recorder.add(step, 0.1, [1.0, 1.0], [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(1.9)])
    assert len(reporter.points) == 16
    recorder.flush()
    assert [step for _, step, _ in reporter.points] == list(range(1, 21))
    recorder.add(21, 0.1, [1.0, 1.0], [torch.tensor(1.0), torch.tensor(math.inf), torch.tensor(math.inf)])
    with pytest.raises(TrainingError, match="'kd' became inf at step 21"):
        recorder.flush()
    monkeypatch.setattr("kdcore.recorder.READ_SECONDS", 0.0)
    recorder.add(22, 0.1, [1.0, 1.0], [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(1.9)])
    assert reporter.points[-1][1] == 22  # a slow step is told at once


@pytest.mark.parametrize(
    ("error", "code"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"), (MemoryError(), "out_of_memory")],
)
def test_running_out_of_memory_names_the_batch_size(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(train, "train_epoch", fail)
    with pytest.raises(TrainingError, match="batch_size 48") as caught:
        light(tiny)
    assert (caught.value.code, caught.value.kind) == (code, "user")


def test_missing_data_is_the_user_s_to_mend(light: Any, tiny: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="MNIST") as caught:
        light({**tiny, "data": {"type": "mnist"}})
    assert (caught.value.code, caught.value.kind) == ("bad_data", "user")


def test_a_data_directory_that_cannot_be_read_is_the_user_s_to_mend(light: Any, tiny: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="the data cannot be read") as caught:
        light({**tiny, "data": {"type": "mnist"}}, data_root=Path("x" * 5000))
    assert (caught.value.code, caught.value.kind) == ("bad_data", "user")


@pytest.mark.parametrize(("request_", "checkpoints"), [("cancel", 0), ("pause", 1), ("drain", 1)])
def test_requests_are_answered_within_a_step(light: Any, tiny: dict[str, Any], request_: Any, checkpoints: int) -> None:
    reporter = RecordingReporter(request_, request_at=3)
    with pytest.raises(Interrupted) as caught:
        light(tiny, reporter)
    assert caught.value.request == request_
    assert len(reporter.checkpoints) == checkpoints
    assert [(saved.stage, saved.step) for saved in reporter.checkpoints] == [("teacher-1", 3)] * checkpoints


def test_progress_is_of_the_whole_job(light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcore.session.PROGRESS_SECONDS", 0.0)
    told = []
    reporter = RecordingReporter()
    reporter.progress = told.append
    light(tiny, reporter)
    fractions = [progress.fraction for progress in told]
    assert fractions == sorted(fractions)
    teacher, alone, distilled = (
        [progress.fraction for progress in told if progress.stage == name]
        for name in ("teacher-1", "baseline", "distill-1")
    )
    assert [len(stage) for stage in (teacher, alone, distilled)] == [11, 11, 11]  # once as each begins, then each step
    assert (teacher[0], alone[0], distilled[0], distilled[-1]) == (0, teacher[-1], alone[-1], pytest.approx(1))
    assert alone[-1] - alone[0] < distilled[-1] - distilled[0]  # it asks the teacher as well
    assert (told[-1].stage, told[-1].epoch, told[-1].epochs, told[-1].step, told[-1].steps) == (
        "distill-1",
        2,
        2,
        10,
        10,
    )
    assert told[-1].eta_seconds == 0.0
    for progress in told[-10:-1]:  # of the last stage; a step has 200 / 5 samples: the last batch is smaller
        assert progress.eta_seconds is not None
        assert progress.samples_per_second == pytest.approx(40 * (10 - progress.step) / progress.eta_seconds)


def test_given_teacher_weights_replace_its_training(light: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    trained, _ = light(tiny)
    save_file(trained["models"]["teacher-1"], tmp_path / "t.safetensors")
    tiny["teachers"] = [{"model": tiny["teachers"][0]["model"], "weights": {"file": "t.safetensors"}}]
    found, reporter = light(tiny)
    assert reporter.stages == ["baseline", "distill-1"]
    assert found["digests"] == trained["digests"]
    tiny["teachers"][0]["weights"] = {"job": "job_" + "0" * 26}
    assert light(tiny, teacher_weights={0: tmp_path / "t.safetensors"})[0]["digests"] == trained["digests"]
    with pytest.raises(TrainingError, match="another job's"):
        light(tiny)


def test_teacher_weights_that_do_not_fit_are_listed(light: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["teachers"] = [{"model": {"type": "mlp", "hidden": [24]}, "weights": {"file": "t.safetensors"}}]
    with pytest.raises(TrainingError, match="not there") as caught:
        light(tiny)
    assert caught.value.kind == "user"
    save_file({"hidden.0.weight": torch.zeros(3, 64), "other": torch.zeros(1)}, tmp_path / "t.safetensors")
    with pytest.raises(TrainingError, match=r"missing head\.weight") as caught:
        light(tiny)
    for part in ("missing hidden.0.bias", "unexpected other", "shape [3, 64], the model's is [24, 64]"):
        assert part in caught.value.message
    (tmp_path / "t.safetensors").write_bytes(b"\xff" * 50)
    with pytest.raises(TrainingError, match="neither safetensors nor ONNX"):
        light(tiny)


def test_teacher_weights_may_not_leave_the_data_directory(light: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "t.safetensors").write_bytes(b"")
    (inside / "link.safetensors").symlink_to(outside / "t.safetensors")
    tiny["teachers"] = [{"model": {"type": "mlp"}, "weights": {"file": "link.safetensors"}}]
    with pytest.raises(TrainingError, match="out of the data directory"):
        light(tiny, data_root=inside)


def test_bf16_trains_in_autocast_with_losses_and_weights_in_float32(
    light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    types = set()
    forward = KD.forward

    def watch(self: KD, batch: Batch) -> Tensor:
        types.update(view.dtype for views in (batch.student, *batch.teachers) for view in views.values())
        return forward(self, batch)

    monkeypatch.setattr(KD, "forward", watch)
    plain, _ = light(tiny)
    half, _ = light({**tiny, "precision": "bf16"})
    assert types == {torch.float32}
    assert half["digests"]["student"] != plain["digests"]["student"]
    assert all(value.dtype == torch.float32 for value in half["models"]["student"].values())
    assert half["selected"]["distill-1"]["nll"] == pytest.approx(plain["selected"]["distill-1"]["nll"], abs=0.2)


def test_seeds_depend_on_every_part() -> None:
    parts = [
        (0, "student", 0),
        (1, "student", 0),
        (0, "teacher", 0),
        (0, "student", 1),
        ("0", "student", 0),
        (0, "a", 1, 1),
    ]
    seeds = {derive(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "student", 1) == 6623407771275809118
    assert sorted(epoch_order(50, 0, "a", 0).tolist()) == list(range(50))


def test_a_missing_device_is_said(light: Any, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choices = choose_here(parse_spec(tiny)).model_copy(update={"device": "cuda"})
    with pytest.raises(TrainingError, match="CUDA") as caught:
        light(tiny, choices=choices)
    assert caught.value.kind == "system"


def test_cross_entropy_smoothing_reaches_the_teacher(light: Any, tiny: dict[str, Any]) -> None:
    smoothed = light(tiny)[0]["digests"]["teacher-1"]
    tiny["teachers"][0]["train"]["label_smoothing"] = 0.0
    assert light(tiny)[0]["digests"]["teacher-1"] != smoothed
    assert cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)).item() == pytest.approx(math.log(2))
