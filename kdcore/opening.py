"""How a job begins: the machine set up, the data read, and the job where its checkpoint left it."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from kdcore import checkpoint
from kdcore.choices import Choices, apply, choose, cpu_name, device_room, usable_cores
from kdcore.data import CACHE_BYTES, DataError, Dataset, Places, TokenizerConfig
from kdcore.errors import TrainingError, data_errors, memory_errors
from kdcore.initial import INITIAL, given_weights
from kdcore.job import Job
from kdcore.memory import Need, room_here
from kdcore.models import AnswersConfig
from kdcore.plan import make_plan
from kdcore.plan_cost import sample_flops
from kdcore.reporter import Reporter
from kdcore.reuse import disk_room
from kdcore.session import Session
from kdcore.spec import JobSpec, spec_document
from kdcore.spec import spec_digest as digest_of
from kdcore.stages import list_stages
from kdcore.state import State, student_name, teacher_name
from kdcore.teacher import load_weights, weights_file
from kdcore.transfer import choose_samples
from kdcore.trial import fitting, half_times, measured

SLOW = 1.5
"""Times as long as float32's that products take in bf16 where the history says so; less is chance."""


def choose_here(
    spec: JobSpec, device: str | None = None, cache: Path | None = None, cache_bytes: int = CACHE_BYTES
) -> Choices:
    """The choices for this machine: the spec's device, or CUDA where there is one and the spec leaves it open.

    Args:
        cache, cache_bytes: as `train.run` gets them.
    """
    wanted = device or spec.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    here: Literal["cpu", "cuda"] = "cuda" if wanted == "cuda" else "cpu"
    room = device_room() if here == "cuda" and torch.cuda.is_available() else room_here(spec.limits.max_memory)
    disk = min(cache_bytes, disk_room(cache)) if cache is not None else 0
    plan, cores = make_plan(spec), usable_cores()
    return measured(spec, plan, choose(spec, plan, device=here, cores=cores, room=room, disk=disk), cores, room)


def open_job(
    spec: JobSpec,
    reporter: Reporter,
    *,
    places: Places,
    checkpoints: Path,
    choices: Choices | None,
    resume: Path | None,
    teacher_weights: Mapping[int, Path],
    student_weights: Path | None = None,
    spec_digest: str | None = None,
) -> Job:
    """Set the machine up, read the data, and find the job where its checkpoint left it; see `train.run`."""
    digest = spec_digest or digest_of(spec)
    saved = checkpoint.load(resume, spec_digest=digest) if resume is not None else None
    if choices is None:
        here = partial(choose_here, spec, cache=places.cache, cache_bytes=places.cache_bytes)
        choices = Choices.model_validate(saved["choices"]) if saved is not None else here()
    try:
        apply(choices)
    except RuntimeError as error:
        raise TrainingError("no_device", str(error), "system") from error
    device = torch.device(choices.device)
    plan = make_plan(spec)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what trials took is no part of what the job will be said to have taken
        torch.cuda.reset_peak_memory_stats()
        choices = fitting(choices, spec, plan, device_room())
    need, room = Need.of(plan.memory.model_dump(), device.type), room_here(spec.limits.max_memory)
    with memory_errors("reading the data", lambda: "read less of it, with `train_samples`"), data_errors():
        data = spec.data.load(places).to(device)
        check_row(data, places.tokenizers)
    if saved is not None and saved["data_digest"] != data.digest:
        raise TrainingError("other_data", "the data has changed since the checkpoint was made; start without it")

    header = {
        "spec": spec_document(spec),
        "spec_digest": digest,
        "data_digest": data.digest,
        "choices": choices.model_dump(mode="json"),
    }
    state = State(**saved["state"]) if saved is not None else State()
    stages = list_stages(spec)
    sizes = [len(data.train) if stage.role == "teacher" else transferred(spec, data) for stage in stages]
    steps = [
        stage.train.epochs * math.ceil(size / stage.train.batch_size) for stage, size in zip(stages, sizes, strict=True)
    ]
    both = zip(stages, plan.stages, strict=True)
    flops = [sample_flops(stage, about, plan.teachers, plan.student) for stage, about in both]
    session = Session(reporter, checkpoints, state, header, spec.checkpoint, stages, steps, sizes, flops)
    running = saved["running"] if saved is not None else None
    job = Job(spec, digest, stages, data, device, choices, reporter, session, state, running, plan, need, room, places)
    for index, teacher in enumerate(spec.teachers):
        if isinstance(teacher.model, AnswersConfig):
            state.models[teacher_name(index)] = {}
        elif teacher.weights is not None and teacher_name(index) not in state.models:
            path = weights_file(teacher, places.root, teacher_weights.get(index))
            state.models[teacher_name(index)] = load_weights(path, job.network("teacher", index))
    if spec.student.weights is not None and INITIAL not in state.models:
        network = job.network("student")
        state.models[INITIAL] = given_weights(spec.student, places.root, student_weights, network)
    if not stages:
        state.models[student_name("distill")] = state.models[INITIAL]
    if saved is not None:
        _tell(job, saved, header)
    if saved is None or saved["choices"]["cpu"] != cpu_name():
        _tell_slow(job)
    return job


def check_row(data: Dataset, tokenizers: Sequence[TokenizerConfig]) -> None:
    """Raise `DataError` where a source, which may be an installed package's, knows nothing of teachers' tokenizers."""
    wanted = data.facts.input_shape[0] + sum(each.length for each in tokenizers)
    if tokenizers and data.train.inputs.shape[1] != wanted:
        raise DataError("this source cuts its texts by its own tokenizer alone; leave the teachers' `tokenizer` out")


def transferred(spec: JobSpec, data: Dataset) -> int:
    """How many samples the student learns on."""
    if spec.transfer.is_whole:
        return len(data.train)
    return len(choose_samples(spec.transfer, data.train.labels, data.facts.classes)[0])


def _tell_slow(job: Job) -> None:
    """A line of history: the spec's precision is slower than float32 on this processor."""
    if job.choices.precision == "bf16" and job.choices.device == "cpu" and (times := half_times()) > SLOW:
        job.reporter.event("slow_precision", {"precision": "bf16", "times": round(times, 1)})


def _tell(job: Job, saved: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """A line of history: where the job goes on, and whether it does so with the choices it began with."""
    state = job.state
    stage = job.stages[state.stage].name if state.stage < len(job.stages) else "evaluation"
    job.reporter.event("resumed_from_checkpoint", {"stage": stage, "epoch": state.epoch, "step": state.step})
    before = saved["choices"]  # of an earlier version perhaps, which knew fewer, or of a later one
    here = {**header["choices"], "torch": torch.__version__, "cpu": cpu_name()}  # stored ones say where the job began
    if Choices.model_validate(before).model_dump(mode="json") | before != here:
        job.reporter.event("choices_changed", {"before": before, "now": here})
