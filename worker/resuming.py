"""From which checkpoint an attempt goes on."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kdcore import checkpoint
from kdcore.errors import TrainingError
from kdcore.spec import JobSpec
from kdcore.stages import list_stages
from storage import queries, records
from storage.files import is_plain
from storage.tables import Job
from worker.ledger import Ledger


def find_resume(ledger: Ledger, job: Job, spec: JobSpec) -> Path | None:
    """The newest checkpoint that is whole; worse ones are set aside, and points beyond it are dropped.

    Raises:
        TrainingError: of kind system: one could not be read. It is left as it is, for another try.
    """
    path, done = None, {}
    for row in ledger.write(partial(queries.list_checkpoints, job_id=job.id)):
        candidate = ledger.settings.home / row.path
        try:
            with checkpoint.read_errors(candidate):
                strange = os.path.lexists(candidate) and not is_plain(candidate, ledger.settings.jobs)
            if strange:
                raise TrainingError("bad_checkpoint", f"{candidate.name} is no file of the service's home", "system")
            saved = checkpoint.load(candidate, spec_digest=job.spec_digest, digest=row.digest)
        except TrainingError as error:
            if error.code not in checkpoint.UNUSABLE:
                raise
            aside = partial(records.set_aside_checkpoint, fence=ledger.fence, id=row.id, reason=error.message)
            ledger.write(aside)
            continue
        path, done = candidate, _done(spec, saved["state"])
        break
    ledger.write(partial(records.rewind, fence=ledger.fence, done=done))
    return path


def _done(spec: JobSpec, state: Mapping[str, Any]) -> dict[str, int | None]:
    """What a checkpoint has seen: finished stages whole, and the steps of the one that runs.

    The row does not tell: after the last stage it still names that one, at its end.
    """
    names = [stage.name for stage in list_stages(spec)]
    finished: dict[str, int | None] = dict.fromkeys(names[: state["stage"]])
    running: dict[str, int | None] = dict.fromkeys(names[state["stage"] : state["stage"] + 1], state["step"])
    return finished | running
