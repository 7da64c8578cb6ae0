"""The loop, from top to bottom: every stage of a job, then the test set once, then the files.

    run                 a job: load the data, train each stage (or take a teacher that is there), finish
      train_stage       a stage: its modules, its epochs, its result
        train_epoch     an epoch: draw a batch, ask the teachers, make a step
          make_step     forward, losses, backward (find_gradients), update
        end_epoch       validation; the best epoch; early stopping
      finish            (kdcore.finish) test set, exports, result

Nothing here knows a loss, a model or a data set by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import product
from operator import add
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from kdcore.asking import Ask, ask_teachers
from kdcore.augment import augment, draw
from kdcore.batches import batches
from kdcore.bias import offset_weights
from kdcore.choices import Choices
from kdcore.compiled import graph_step
from kdcore.data import CACHE_BYTES, Places
from kdcore.errors import diverged, memory_errors, single_sample_errors
from kdcore.examine import examine_teachers
from kdcore.finish import finish
from kdcore.job import Job
from kdcore.keeping import fixed_draws, stage_targets
from kdcore.losses import Batch, Rival, Term, WhenRead
from kdcore.memory import SMALLER, give_back
from kdcore.opening import open_job
from kdcore.profiling import profiled
from kdcore.recorder import Recorder
from kdcore.reporter import Reporter, heed
from kdcore.seeds import again, epoch_order, generator
from kdcore.spec import JobSpec, tokenizers_of
from kdcore.stages import Stage
from kdcore.state import Training, all_finite, copy_weights
from kdcore.targets import Targets
from kdcore.trained import train_once


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
    student_weights: Path | None = None,
    download: bool = True,
    points: int = 500,
    spec_digest: str | None = None,
    uploads: Mapping[str, Path | Callable[[], Path]] | None = None,
    cache: Path | None = None,
    cache_bytes: int = CACHE_BYTES,
    ask: Ask | None = None,
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
        teacher_weights: a file for each teacher with `weights: {job: …}` or `{model: …}`, by its place in `teachers`.
        student_weights: a file for a student with `weights: {job: …}` or `{model: …}`.
        download: whether missing data may be fetched.
        points: how many steps of a stage report their training metrics, at most.
        spec_digest: under which the spec was stored, perhaps by an older version; left out: the one it has today.
        uploads: the files of uploaded data sets, by their id; or what finds one, called only where it is read.
        cache: where these are kept in a form that is read fast; left out: made for this run alone.
        cache_bytes: how large the cache may grow.
        ask: how a teacher over HTTP is asked; left out: it cannot be.

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
        places=Places(
            data_root, download, uploads or {}, cache, cache_bytes, partial(heed, reporter), tokenizers_of(spec)
        ),
        checkpoints=checkpoint_dir or out / "checkpoints",
        choices=choices,
        resume=resume,
        teacher_weights=teacher_weights or {},
        student_weights=student_weights,
        spec_digest=spec_digest,
    )
    ask_teachers(job, ask)
    with memory_errors("the teachers' evaluation, which no batch_size changes,", lambda: SMALLER):
        examine_teachers(job)
    for stage in job.stages[job.state.stage :]:
        size = stage.train.batch_size
        with (
            memory_errors(f"stage {stage.name!r} with batch_size {size}", partial(job.memory_advice, size)),
            single_sample_errors(stage.name, size),
        ):
            train_once(job, stage, partial(train_stage, job, stage, points, out))
        give_back()
    with memory_errors("evaluation and export, which no batch_size changes,", lambda: SMALLER):
        return finish(job, out)


def train_stage(job: Job, stage: Stage, points: int, out: Path) -> None:
    """Train one stage to its end and note what it leaves: the best epoch's weights, or the last one's to hand on."""
    state, config = job.state, stage.train
    job.reporter.stage(stage.name)
    training = job.prepare(stage)
    training.graph = graph_step(job, stage, training, partial(find_gradients, job, training))
    recorder = Recorder(
        job.reporter,
        stage.name,
        stage.losses,
        steps=config.epochs * job.steps_per_epoch(stage),
        points=points,
    )
    with job.session.stage(training, recorder):
        targets = stage_targets(job, stage, training.terms)
        with profiled(job, stage, training, targets, out):
            while state.epoch < config.epochs and not out_of_patience(job, stage):
                with job.steps(stage, targets):
                    train_epoch(job, stage, training, targets, recorder)
                recorder.flush()
                end_epoch(job, stage, training)
        training.check(stage.name, state.step)

    assert state.best is not None
    weights = offset_weights(job, stage, state.best) if job.is_last(stage) else copy_weights(training.model)
    job.conclude(stage, weights)
    job.session.save()


def train_epoch(job: Job, stage: Stage, training: Training, targets: Targets, recorder: Recorder) -> None:
    """The updates of an epoch that are not made yet; a resume starts in its middle."""
    state, config = job.state, stage.train
    model, terms = training.model, training.terms
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
    version = state.epoch % (config.augment.versions or 1)
    fixed = fixed_draws(job, config.augment, version)

    def augmented(inputs: Tensor, batch: Tensor) -> Tensor:
        chance = generator(job.device, *lucky, "augment", state.step)
        return augment(inputs, fixed.of(batch) if fixed else draw(len(batch), config.augment, chance))

    model.train()
    terms.train()
    targets.check()
    left = order[(state.step - state.epoch * steps_per_epoch) * config.batch_size :]
    change = augmented if config.augment.is_on else None
    for batch, inputs, read, labels in batches(job.data, seen_labels, reader, left, config.batch_size, change):
        job.session.poll()

        with job.autocast():
            taught = targets.of(batch, inputs, version)
        epoch = state.step / steps_per_epoch
        weights = [loss.weight_at(epoch) for loss in stage.losses]
        rate = config.optimizer.lr * config.schedule.factor(state.step, steps_per_epoch, total_steps)
        seen = Batch({}, taught, labels, batch, read, epoch)
        values = training.graph(seen, weights, rate) if training.graph is not None else None
        if values is None:
            values = make_step(job, training, seen, weights, rate, config.gradient_clip)

        state.step += 1
        recorder.add(state.step, rate, weights, values, extras(terms))
        job.session.step_done()


def make_step(
    job: Job, training: Training, seen: Batch, weights: Sequence[float], rate: float, clip: float | None
) -> list[Tensor]:
    """One update of the student, then one of each rival: each term's raw loss, and the norm that was clipped."""
    seen, raw = find_gradients(job, training, seen, weights)
    norm = [nn.utils.clip_grad_norm_(training.parameters(), clip)] if clip is not None else []
    training.update.make(rate)
    for rival in training.rivals.values():
        rival_step(rival, seen)
    return [*raw, *norm]


def find_gradients(job: Job, training: Training, seen: Batch, weights: Sequence[float]) -> tuple[Batch, list[Tensor]]:
    """Forward, losses, backward: the batch with the student's views, each term's raw loss, and in each parameter the
    gradient of their weighted sum."""
    with job.autocast():
        views = training.model.views(seen.inputs)
    seen = replace(seen, student=WhenRead(views, Tensor.float))
    raw = [term(seen) for term in training.terms]
    loss = reduce(add, (weight * value for weight, value in zip(weights, raw, strict=True)))

    training.update.forget_gradients()
    loss.backward()
    return seen, raw


def rival_step(rival: Rival, seen: Batch) -> None:
    """The rival's turn: an update on the views that the student was just updated with."""
    loss = rival.loss(replace(seen, student=WhenRead(seen.student, Tensor.detach)))
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
    values = job.validation_scores(logits)
    if stage.role == "distill":
        for index, (name, likeness) in product(range(len(job.spec.teachers)), job.task.likeness.items()):
            suffix = f"-{index + 1}" if index else ""
            values[name + suffix] = likeness(logits, job.teacher_validation_logits(index))
    job.reporter.metrics(stage.name, state.step, {f"validation/{name}": value for name, value in values.items()})

    state.epoch += 1
    score = selection_score(job, values)
    if state.best is None or score > state.best["score"]:
        before = state.best["weights"] if state.best is not None else None
        weights = copy_weights(training.model, before) if job.is_last(stage) else None
        state.best = {"epoch": state.epoch, "score": score, "values": values, "weights": weights}
    stopping = stage.train.early_stopping
    if state.reference is None or score > state.reference + (stopping.min_delta if stopping else 0.0):
        state.reference, state.stale = score, 0
    else:
        state.stale += 1


def selection_score(job: Job, values: Mapping[str, float]) -> float:
    """By which the best epoch is picked: `select_by`; with no label to validate on, the first measure of likeness to
    the first teacher; with no teacher either, or by wish, the last epoch."""
    name, alike = job.spec.select_by, next(iter(job.task.likeness), None)
    if name != "last" and name in values:
        return job.task.better(name, values[name])
    likeness = values.get(alike) if alike is not None and name != "last" else None
    return likeness if likeness is not None else float(job.state.epoch)


def out_of_patience(job: Job, stage: Stage) -> bool:
    stopping = stage.train.early_stopping
    return stopping is not None and job.state.stale >= stopping.patience
