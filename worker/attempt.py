"""One attempt, from the job's row to its artifacts: load, choose, resume, train, publish."""

import shutil
import traceback
from functools import partial
from typing import Any

from kdcore import train
from kdcore.choices import Choices
from kdcore.config import SpecError
from kdcore.data import DataError
from kdcore.errors import NO_SPACE, TrainingError, disk_reason
from kdcore.opening import choose_here
from kdcore.reporter import Interrupted, heed
from kdcore.spec import JobSpec, parse_spec
from storage import records
from storage.database import Database
from storage.errors import StaleAttemptError
from storage.ids import is_check
from storage.lifecycle import Fence
from storage.settings import Settings
from storage.tables import Job
from worker.asking import Asker
from worker.check import check_and_publish
from worker.files import dataset_files, student_file, teacher_files
from worker.identity import whose
from worker.ledger import AWAY, Ledger
from worker.places import attempt_folder
from worker.publishing import publish, running_job
from worker.reporting import StorageReporter
from worker.resuming import find_resume
from worker.wire import Inbox


def run(fence: Fence, inbox: Inbox) -> None:
    """Run the attempt and end it in the database.

    Raises:
        StaleAttemptError: it is no longer the job's.
    """
    settings = Settings()
    ledger = Ledger(Database(settings.database), settings, fence)
    try:
        _do(ledger, inbox)
    except Interrupted as interrupted:
        ledger.give_up(interrupted.request)
    except TrainingError as error:
        end = ledger.fail if error.kind == "user" else ledger.release
        end(error.code, error.message)
    except SpecError as error:
        ledger.fail("invalid_spec", str(error))
    except DataError as error:
        ledger.fail("bad_data", str(error))
    except (StaleAttemptError, *AWAY):
        raise
    except Exception as error:
        traceback.print_exc()
        ledger.release(*_explain(error))


def _do(ledger: Ledger, inbox: Inbox) -> None:
    do = check_and_publish if is_check(ledger.fence.job_id) else _train_and_publish
    try:
        do(ledger, inbox)
    finally:  # what was not published is of no use, and the disk may be full of it, which the database may share
        shutil.rmtree(attempt_folder(ledger.settings, ledger.fence) / "out", ignore_errors=True)


def _explain(error: Exception) -> tuple[str, str]:
    """Code and message of an error that nobody foresaw; the whole of it is in the log."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return "disk", f"a file could not be written: {disk_reason(error)}"
    lines = str(error).splitlines() or [""]
    return "crashed", f"{type(error).__name__}: {lines[0][:300]}"


def _train_and_publish(ledger: Ledger, inbox: Inbox) -> None:
    settings, folder = ledger.settings, attempt_folder(ledger.settings, ledger.fence)
    job = ledger.write(lambda session: running_job(session, ledger.fence))
    spec = parse_spec(job.spec)
    choices = _choose(ledger, job, spec)
    resume = find_resume(ledger, job, spec)
    with StorageReporter(ledger, lambda: inbox.request) as reporter:
        poll = partial(heed, reporter)
        result = train.run(
            spec,
            data_root=settings.data,
            out=folder / "out",
            reporter=reporter,
            choices=choices,
            checkpoint_dir=folder / "checkpoints",
            resume=resume,
            teacher_weights=teacher_files(ledger, job, spec, poll),
            student_weights=student_file(ledger, job, spec, poll),
            uploads=dataset_files(ledger, job, spec, poll),
            cache=settings.cache,
            cache_bytes=settings.cache_bytes,
            download=settings.allow_download,
            points=settings.metric_points,
            spec_digest=job.spec_digest,
            ask=Asker(settings),
        )
    publish(ledger, job, folder / "out", result)


def _choose(ledger: Ledger, job: Job, spec: JobSpec) -> Choices:
    """What the first attempt chose, or, in the first, what suits this worker."""
    stored = job.choices
    if stored is None:
        device: Any = whose().device if spec.device == "auto" else spec.device
        chosen = choose_here(spec, device, ledger.settings.cache, ledger.settings.cache_bytes).model_dump(mode="json")
        stored = ledger.write(lambda session: records.store_choices(session, ledger.fence, chosen))
    return Choices.model_validate(stored)
