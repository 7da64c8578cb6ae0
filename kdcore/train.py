"""The loop, from top to bottom: every stage of a job, then the test set once, then the files.

    run                 a job: load the data, train each stage, finish
      train_stage       a stage: its modules, its epochs, its result
        train_epoch     an epoch: draw a batch, forward, losses, backward, step
        end_epoch       validation; the best epoch; early stopping
      finish            (kdcore.finish) test set, exports, result

Nothing here knows a loss, a model or a data set by name.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdcore.augment import augment
from kdcore.choices import Choices
from kdcore.errors import diverged, memory_errors, single_sample_errors
from kdcore.finish import finish
from kdcore.inputs import unit
from kdcore.job import Job
from kdcore.losses import Batch, Rival, Term
from kdcore.memory import SMALLER
from kdcore.opening import open_job
from kdcore.recorder import Recorder
from kdcore.reporter import Reporter
from kdcore.seeds import again, epoch_order, generator
from kdcore.spec import JobSpec
from kdcore.stages import Stage
from kdcore.state import Training, all_finite, copy_weights
from kdcore.targets import Targets


def run(
    spec: JobSpec,
    *,
    data_root: Path,
    out: Path,
    reporter: Reporter,
    choices: Choices | None = None,
    checkpoint_dir: Path | None = None,
    resume: Path | None = None,
    teacher_weights: Mapping[int, Path] | None = None,
    download: bool = True,
    points: int = 500,
    spec_digest: str | None = None,
) -> dict[str, Any]:
    """Run a job to its end, or from a checkpoint to its end.

    Args:
        spec: the job.
        data_root: the data directory.
        out: where the student and its papers go; made if missing.
        reporter: hears of everything, and is asked at every step whether to stop.
        choices: what may change bits; the checkpoint's where left out, else chosen for this machine.
        checkpoint_dir: where checkpoints go, `out/checkpoints` where left out; nobody else writes there.
        resume: a checkpoint of the same spec; with equal choices on one CPU model the student's bytes
            are those of a run that was never interrupted.
        teacher_weights: a .safetensors file for each teacher with `weights: {job: …}`, by its place in `teachers`.
        download: whether missing data may be fetched.
        points: how many steps of a stage report their training metrics, at most.
        spec_digest: under which the spec was stored, perhaps by an older version; left out: the one it has today.

    Returns:
        The result document, which is also in `out/result.json`.

    Raises:
        Interrupted: the reporter asked for it.
        TrainingError: the job cannot go on; its `kind` says whose turn it is.
        SpecError: the spec cannot be run.
    """
    job = open_job(
        spec,
        reporter,
        data_root=data_root,
        checkpoints=checkpoint_dir or out / "checkpoints",
        choices=choices,
        resume=resume,
        teacher_weights=teacher_weights or {},
        download=download,
        spec_digest=spec_digest,
    )
    for stage in job.stages[job.state.stage :]:
        size = stage.train.batch_size
        with (
            memory_errors(f"stage {stage.name!r} with batch_size {size}", partial(job.memory_advice, size)),
            single_sample_errors(stage.name, size),
        ):
            train_stage(job, stage, points)
    with memory_errors("evaluation and export, which no batch_size changes,", lambda: SMALLER):
        return finish(job, out)


def train_stage(job: Job, stage: Stage, points: int) -> None:
    """Train one stage to its end and note what it leaves: the best epoch's weights, or the last one's to hand on."""
    state, config = job.state, stage.train
    job.reporter.stage(stage.name)
    training = job.prepare(stage)
    recorder = Recorder(
        job.reporter,
        stage.name,
        stage.losses,
        steps=config.epochs * job.steps_per_epoch(stage),
        points=points,
        on_cuda=job.device.type == "cuda",
    )
    with job.session.stage(training, recorder):
        targets = job.targets(stage, training.terms)
        while state.epoch < config.epochs and not out_of_patience(job, stage):
            train_epoch(job, stage, training, targets, recorder)
            recorder.flush()
            end_epoch(job, stage, training)
        training.check(stage.name, state.step)

    assert state.best is not None
    weights = job.offset(stage, state.best) if job.is_last(stage) else copy_weights(training.model)
    job.conclude(stage, weights)
    job.session.save()


def train_epoch(job: Job, stage: Stage, training: Training, targets: Targets, recorder: Recorder) -> None:
    """The updates of an epoch that are not made yet; a resume starts in its middle."""
    state, config, split = job.state, stage.train, job.data.train
    model, terms, optimizer = training.model, training.terms, training.optimizer
    reader = job.reader(stage.role, stage.index)
    lucky: tuple[str | int, ...] = (
        job.spec.seed,
        job.family(stage),
        stage.index,
        *again(stage.repeat),
    )  # baseline and student draw the same
    samples, seen_labels = job.samples(stage)
    order = samples[epoch_order(len(samples), *lucky, state.epoch).to(job.device)]
    steps_per_epoch = job.steps_per_epoch(stage)
    total_steps = config.epochs * steps_per_epoch

    model.train()
    terms.train()
    targets.check()
    for position in range(state.step - state.epoch * steps_per_epoch, steps_per_epoch):
        job.session.poll()

        batch = order[position * config.batch_size : (position + 1) * config.batch_size]
        labels = seen_labels[batch]
        inputs = unit(split.inputs[batch], job.data.scale)  # (B, C, H, W) float32 in [0, 1]
        if config.augment.is_on:
            inputs = augment(inputs, config.augment, generator(job.device, *lucky, "augment", state.step))
        read = reader(inputs)

        with job.autocast():
            views = model.views(read)
            taught = targets.of(batch, inputs)
        views = {name: view.float() for name, view in views.items()}
        epoch = state.step / steps_per_epoch
        seen = Batch(views, taught, labels, batch, read, epoch)
        weights = [loss.weight_at(epoch) for loss in stage.losses]
        raw = [term(seen) for term in terms]
        loss: Tensor = torch.stack([weight * value for weight, value in zip(weights, raw, strict=True)]).sum()

        factor = config.schedule.factor(state.step, steps_per_epoch, total_steps)
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * factor
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        values = [*raw, loss]
        if config.gradient_clip is not None:
            values.append(nn.utils.clip_grad_norm_(training.parameters(), config.gradient_clip))
        optimizer.step()
        for rival in training.rivals.values():
            rival_step(rival, seen)

        state.step += 1
        recorder.add(state.step, config.optimizer.lr * factor, weights, values, extras(terms))
        job.session.step_done()


def rival_step(rival: Rival, seen: Batch) -> None:
    """The rival's turn: an update on the views that the student was just updated with."""
    loss = rival.loss(replace(seen, student={name: view.detach() for name, view in seen.student.items()}))
    if loss is not None:
        rival.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        rival.optimizer.step()


def extras(terms: nn.ModuleList) -> dict[str, Tensor]:
    """What the terms want watched beside their values, by `<place>/<name>`, the place counted from 1."""
    return {
        f"{place}/{name}": value
        for place, term in enumerate(terms, start=1)
        for name, value in cast(Term, term).metrics().items()
    }


def end_epoch(job: Job, stage: Stage, training: Training) -> None:
    """Validate, report, remember the best epoch, count the epochs that did not improve."""
    state = job.state
    logits = job.predict(training.model, "validation", job.reader(stage.role, stage.index))
    if not all_finite([logits]):
        raise diverged(stage.name, state.step, "an output on the validation split", float("nan"))
    values: dict[str, float] = {name: score(logits, job.validation_labels) for name, score in job.task.scores.items()}
    if stage.role == "distill":
        for index, (name, likeness) in product(range(len(job.spec.teachers)), job.task.likeness.items()):
            suffix = f"-{index + 1}" if index else ""
            values[name + suffix] = likeness(logits, job.teacher_validation_logits(index))
    job.reporter.metrics(stage.name, state.step, {f"validation/{name}": value for name, value in values.items()})

    state.epoch += 1
    score = job.task.better(job.spec.select_by, values[job.spec.select_by])
    if state.best is None or score > state.best["score"]:
        weights = copy_weights(training.model) if job.is_last(stage) else None
        state.best = {"epoch": state.epoch, "score": score, "values": values, "weights": weights}
    stopping = stage.train.early_stopping
    if state.reference is None or score > state.reference + (stopping.min_delta if stopping else 0.0):
        state.reference, state.stale = score, 0
    else:
        state.stale += 1


def out_of_patience(job: Job, stage: Stage) -> bool:
    stopping = stage.train.early_stopping
    return stopping is not None and job.state.stale >= stopping.patience
