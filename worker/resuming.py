"""From which checkpoint an attempt goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcore import checkpoint
from kdcore.errors import TrainingError
from kdcore.spec import JobSpec
from kdcore.stages import list_stages
from storage import records
from storage.tables import Job
from worker.ledger import Ledger


def find_resume(ledger: Ledger, job: Job, spec: JobSpec) -> Path | None:
    """The newest checkpoint that is whole; worse ones are set aside, and points beyond it are dropped."""
    home, fence = ledger.settings.home, ledger.fence
    for row in ledger.write(lambda session: records.last_checkpoints(session, fence.job_id)):
        path, id = home / row.path, row.id
        try:
            saved = checkpoint.load(path, spec_digest=job.spec_digest, digest=row.digest)
        except TrainingError as error:
            reason = error.message
            ledger.write(lambda session: records.set_aside_checkpoint(session, fence, id, reason))  # noqa: B023
            continue
        done = _done(spec, saved["state"])
        ledger.write(lambda session: records.rewind(session, fence, done))  # noqa: B023
        return path
    ledger.write(lambda session: records.rewind(session, fence, {}))
    return None


def _done(spec: JobSpec, state: Mapping[str, Any]) -> dict[str, int | None]:
    """What a checkpoint has seen: finished stages whole, and the steps of the one that runs.

    The row's stage does not tell: after the last stage it still names that one, at step 0.
    """
    names = [stage.name for stage in list_stages(spec)]
    finished: dict[str, int | None] = dict.fromkeys(names[: state["stage"]])
    running: dict[str, int | None] = dict.fromkeys(names[state["stage"] : state["stage"] + 1], state["step"])
    return finished | running
