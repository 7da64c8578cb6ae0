"""How a job begins: the machine set up, the data read, and the job where its checkpoint left it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from kdcore import checkpoint
from kdcore.choices import Choices, apply, choose, usable_cores
from kdcore.data import Dataset
from kdcore.errors import TrainingError, data_errors, memory_errors
from kdcore.job import Job, device_room, teacher_name
from kdcore.memory import Need, room_here
from kdcore.plan import make_plan
from kdcore.plan_cost import sample_flops
from kdcore.reporter import Reporter
from kdcore.session import Session
from kdcore.spec import JobSpec, spec_document
from kdcore.spec import spec_digest as digest_of
from kdcore.stages import list_stages
from kdcore.state import State
from kdcore.teacher import load_weights, weights_file
from kdcore.transfer import choose_samples


def choose_here(spec: JobSpec, device: str | None = None) -> Choices:
    """The choices for this machine: the spec's device, or CUDA where there is one and the spec leaves it open."""
    wanted = device or spec.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    here: Literal["cpu", "cuda"] = "cuda" if wanted == "cuda" else "cpu"
    room = device_room() if here == "cuda" and torch.cuda.is_available() else room_here(spec.limits.max_memory)
    return choose(spec, make_plan(spec), device=here, cores=usable_cores(), room=room)


def open_job(
    spec: JobSpec,
    reporter: Reporter,
    *,
    data_root: Path,
    checkpoints: Path,
    choices: Choices | None,
    resume: Path | None,
    teacher_weights: Mapping[int, Path],
    download: bool,
    spec_digest: str | None = None,
) -> Job:
    """Set the machine up, read the data, and find the job where its checkpoint left it; see `train.run`."""
    digest = spec_digest or digest_of(spec)
    saved = checkpoint.load(resume, spec_digest=digest) if resume is not None else None
    if choices is None:
        choices = Choices.model_validate(saved["choices"]) if saved is not None else choose_here(spec)
    try:
        apply(choices)
    except RuntimeError as error:
        raise TrainingError("no_device", str(error), "system") from error
    device = torch.device(choices.device)
    plan = make_plan(spec)
    need, room = Need.of(plan.memory.model_dump(), device.type), room_here(spec.limits.max_memory)
    with memory_errors("reading the data", lambda: "read less of it, with `train_samples`"), data_errors():
        data = spec.data.load(data_root, download=download).to(device)
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
    flops = [sample_flops(stage, plan.teachers, plan.student) for stage in stages]
    session = Session(reporter, checkpoints, state, header, spec.checkpoint, stages, steps, sizes, flops)
    running = saved["running"] if saved is not None else None
    job = Job(spec, digest, stages, data, device, choices, reporter, session, state, running, need, room)
    for index, teacher in enumerate(spec.teachers):
        if teacher.weights is not None and teacher_name(index) not in state.models:
            path = weights_file(teacher, data_root, teacher_weights.get(index))
            state.models[teacher_name(index)] = load_weights(path, job.network("teacher", index))
    if saved is not None:
        _tell(job, saved, header)
    return job


def transferred(spec: JobSpec, data: Dataset) -> int:
    """How many samples the student learns on."""
    if spec.transfer.is_whole:
        return len(data.train)
    return len(choose_samples(spec.transfer, data.train.labels, data.facts.classes)[0])


def _tell(job: Job, saved: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """A line of history: where the job goes on, and whether it does so with the choices it began with."""
    state = job.state
    stage = job.stages[state.stage].name if state.stage < len(job.stages) else "evaluation"
    job.reporter.event("resumed_from_checkpoint", {"stage": stage, "epoch": state.epoch, "step": state.step})
    before = saved["choices"]  # of an earlier version perhaps, which knew fewer, or of a later one
    if Choices.model_validate(before).model_dump(mode="json") | before != header["choices"]:
        job.reporter.event("choices_changed", {"before": saved["choices"], "now": header["choices"]})
