"""Where what teachers say is kept: in the device's memory, beyond that in a file, and for the next job in the cache.

`Choices.keep_bytes` of memory and `Choices.spill_bytes` of a file decide, once per job, whether a stage's teachers are
asked once or in every step, since that changes the last bits. The cache only decides who computes: what it holds has
the bytes that this job would compute.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from kdcore.augment import Draws, draw
from kdcore.data import StoredRows
from kdcore.export import weights_digest
from kdcore.inputs import view_shapes
from kdcore.job import Job
from kdcore.losses import Term
from kdcore.models import Precomputed
from kdcore.reuse import DamagedError, check_room, circumstances, is_of_the_house, key_of, obtain, samples_seen, tell
from kdcore.seeds import generator
from kdcore.stages import Stage
from kdcore.state import teacher_name
from kdcore.targets import Targets, answers, kept_bytes, views_read
from kdcore.training import AugmentConfig
from kdcore.uploads.cache import Lock

VIEWS = "views.json"
MOST_WRITTEN = 2**30
"""Bytes that are written for the next job alone: to ask again is faster than a disk that takes more."""


def stage_targets(job: Job, stage: Stage, terms: nn.ModuleList) -> Targets:
    """What the teachers say of the stage's samples; kept where these repeat, and there is room."""
    count = stage.index if stage.role == "teacher" else len(job.spec.teachers)
    read = views_read(stage.losses, cast(Sequence[Term], list(terms)), count)
    networks = {place: job.teacher(place) for place in read}
    given = {(at, "logits"): each.said("train") for at, each in networks.items() if isinstance(each, Precomputed)}
    asked = {place: names for place, names in read.items() if (place, "logits") not in given}
    live = Targets(read, {place: networks[place] for place in asked}, job.teacher_readers, given)
    versions = stage.train.augment.versions
    if versions is None or not asked:
        return live
    shapes = [
        view_shapes(networks[at], job.teacher_readers[at].facts) if at in asked else {} for at in range(max(asked) + 1)
    ]
    size = kept_bytes(asked, shapes, versions * len(job.data.train))
    fits = size <= job.choices.keep_bytes
    if not fits and size > job.choices.spill_bytes:
        if job.spec.keep_targets:
            room = max(job.choices.keep_bytes, job.choices.spill_bytes)
            _tell_not_kept(job, stage, size, f"they take {size:,} bytes, and there is room for {room:,}")
        return live
    try:
        kept = _keep(job, stage, asked, size, fits)
    except (OSError, DamagedError) as error:  # of the cache: the disk is full, say
        _tell_not_kept(job, stage, size, getattr(error, "strerror", None) or str(error))
        return live
    return Targets(read, {}, job.teacher_readers, given, kept, len(job.data.train))


def fixed_draws(job: Job, augment: AugmentConfig, version: int) -> Draws | None:
    """What is drawn for all training samples in one of a fixed number of versions, the same for all stages of the job;
    None: nothing, or anew in every step."""
    if not augment.is_on or augment.views is None:
        return None
    return draw(len(job.data.train), augment, generator(job.device, job.spec.seed, "views", version))


def _keep(
    job: Job, stage: Stage, asked: Mapping[int, Sequence[str]], size: int, fits: bool
) -> dict[tuple[int, str], Tensor | StoredRows]:
    """The views by teacher and name.

    Raises:
        OSError, DamagedError: they do not fit into memory, and the cache cannot be used.
    """
    change = _change(job, stage.train.augment)
    wanted = {(place, name, change) for place, names in asked.items() for name in names}
    job.kept.make_room(wanted, size if fits else 0, job.choices.keep_bytes)
    for place, names in asked.items():
        if missing := [name for name in names if (place, name, change) not in job.kept.views]:
            found = _obtained(job, stage, place, missing, size, fits)
            job.kept.views |= {(place, name, change): view for name, view in found.items()}
    return {(place, name): job.kept.views[place, name, change] for place, name, _ in wanted}


def _obtained(
    job: Job, stage: Stage, place: int, names: Sequence[str], size: int, fits: bool
) -> dict[str, Tensor | StoredRows]:
    """From the cache, or asked."""
    said, count = partial(_answers, job, stage, place, names), (stage.train.augment.versions or 1) * len(job.data.train)
    is_shared = job.places.cache is not None and is_of_the_house([job.spec.teachers[place].model])
    if not fits and not is_shared:
        raise OSError("they do not fit into memory, and there is no cache for them")
    if not is_shared or (fits and size > MOST_WRITTEN):
        return _in_memory(said(), count)
    new = []

    def make(folder: Path) -> None:
        new.append(folder)
        check_room(job.places, size)
        write(folder, names, said(), count)

    try:
        key = key_of("targets", question(job, place, names, stage.train.augment))
        found = obtain(job.places, key, make, partial(_read, job, fits), job.session.poll)
    except (OSError, DamagedError) as error:
        if not fits:
            raise
        tell(job, f"what {teacher_name(place)} says", error)
        return _in_memory(said(), count)
    told = {"stage": stage.name, "teacher": teacher_name(place), "views": list(names)}
    where = {"in": "memory" if fits else "file", "reused": not new}
    job.reporter.event("targets_kept", told | where)
    return found


def question(job: Job, place: int, names: Sequence[str], augment: AugmentConfig) -> dict[str, Any]:
    """All that decides the bytes of what a teacher says."""
    return {
        "weights": weights_digest(job.state.models[teacher_name(place)]),
        "model": job.spec.teachers[place].model.model_dump(mode="json"),
        "outputs": list(job.outputs("teacher", place)),
        "classes": list(job.data.facts.classes),
        "seen": samples_seen(job, "teacher", place),
        "change": _change(job, augment),
        "names": list(names),
        **circumstances(job),
    }


def _change(job: Job, augment: AugmentConfig) -> str:
    """How samples are changed before a teacher sees them: not at all, or as the job's seed draws it."""
    return f"{augment.model_dump_json()} {job.spec.seed}" if augment.is_on else ""


def _answers(job: Job, stage: Stage, place: int, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    augment = stage.train.augment
    versions = [fixed_draws(job, augment, version) for version in range(augment.versions or 1)]
    reader, poll = job.teacher_readers[place], job.session.poll
    return answers(names, job.teacher(place), reader, job.data, versions, job.autocast, poll, job.choices.at_once)


def _in_memory(said: Iterator[dict[str, Tensor]], count: int) -> dict[str, Tensor | StoredRows]:
    """`count` rows of each view."""
    whole: dict[str, Tensor | StoredRows] = {}
    begun = 0
    for part in said:
        for name, view in part.items():
            rows = whole.setdefault(name, view.new_empty((count, *view.shape[1:])))
            cast(Tensor, rows)[begun : begun + len(view)] = view
        begun += len(next(iter(part.values())))
    return whole


def write(folder: Path, names: Sequence[str], said: Iterator[dict[str, Tensor]], count: int) -> None:
    """A `.npy` file of `count` rows for each view, written as the answers come, and a list of them.

    numpy has no bfloat16: such a view is written as whole numbers of the same bits.
    """
    listed: dict[str, tuple[str, str]] = {}
    with ExitStack() as opened:
        files = {name: opened.enter_context((folder / f"{at}.npy").open("wb")) for at, name in enumerate(names)}
        for part in said:
            for name, view in part.items():
                rows = (view.view(torch.int16) if view.dtype == torch.bfloat16 else view).cpu().numpy()
                if name not in listed:
                    listed[name] = (Path(files[name].name).name, str(view.dtype).removeprefix("torch."))
                    shape = (count, *rows.shape[1:])
                    described = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(files[name], described)
                files[name].write(np.ascontiguousarray(rows).data)
    (folder / VIEWS).write_text(json.dumps(listed), encoding="utf-8")


def _read(job: Job, fits: bool, folder: Path, lock: Lock) -> dict[str, Tensor | StoredRows]:
    found: dict[str, Tensor | StoredRows] = {}
    for name, (file, dtype) in json.loads((folder / VIEWS).read_text(encoding="utf-8")).items():
        meant = torch.bfloat16 if dtype == "bfloat16" else None
        rows = StoredRows(folder / file, keep=lock, meant=meant).to(job.device)
        found[name] = rows[:] if fits else rows
    return found


def _tell_not_kept(job: Job, stage: Stage, size: int, reason: str) -> None:
    job.reporter.event("targets_not_kept", {"stage": stage.name, "bytes": size, "reason": reason})
