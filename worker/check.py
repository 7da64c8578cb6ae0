"""The check of an upload: its parts joined, its digest compared, its content looked through. A job like any other."""

import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdcore import checkpoint
from kdcore.data import DataError
from kdcore.errors import TrainingError
from kdcore.modelfiles import ModelOptions, check_model
from kdcore.reporter import heed
from kdcore.uploads import DatasetOptions, check_dataset
from storage import uploads
from storage.blobs import BlobStore
from storage.errors import BlobError
from storage.upload_tables import Upload, UploadPart
from worker.files import Poll, stored_file
from worker.ledger import Ledger, storable
from worker.places import attempt_folder
from worker.publishing import publish, running_job
from worker.reporting import StorageReporter
from worker.wire import Inbox


def check_and_publish(ledger: Ledger, inbox: Inbox) -> None:
    """Check the upload of this attempt; what is found of it becomes its profile.

    Raises:
        DataError, TrainingError: it cannot be used.
        Interrupted: the worker ends.
    """
    job = ledger.write(lambda session: running_job(session, ledger.fence))
    with ledger.database.read() as session:
        upload = uploads.checked_by(session, job.id)
    out = attempt_folder(ledger.settings, ledger.fence) / "out"
    out.mkdir(parents=True, exist_ok=True)
    with StorageReporter(ledger, lambda: inbox.request, loading_seconds=0.0) as reporter:  # each loop of it polls
        poll = partial(heed, reporter)
        path = _whole_file(ledger, upload, poll)
        profile = _look_through(path, upload, out, poll, ledger.settings.min_free_bytes)
    publish(ledger, job, out, {"profile": storable(profile.model_dump(mode="json"))})


def _look_through(path: Path, upload: Upload, out: Path, poll: Poll, spared: int) -> BaseModel:
    if upload.kind == "dataset":
        options = DatasetOptions.model_validate(upload.options)
        with _reader_errors("bad_data"):
            return check_dataset(path, options, out=out, poll=poll)
    described = ModelOptions.model_validate(upload.options)
    with _reader_errors("bad_model"):
        return check_model(path, described, out=out, poll=poll, spared=spared)


@contextmanager
def _reader_errors(code: str) -> Iterator[None]:
    """Turns a `ValueError` of a reader, which nobody foresaw, into a fault of the file: each attempt would meet it."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        traceback.print_exc()  # for the log: it may be the reader's own
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        raise TrainingError(code, f"the file cannot be read ({why}); write it anew") from error


def _whole_file(ledger: Ledger, upload: Upload, poll: Poll) -> Path:
    """The file in the store; an earlier attempt may have joined it."""
    if upload.digest is not None:
        try:
            return stored_file(ledger, upload.digest, upload.size, poll)
        except BlobError as error:
            raise TrainingError("no_upload", f"the uploaded file is damaged: {error}", "system") from error
    store, digest = BlobStore(ledger.settings.blobs), ""

    def commit(session: Any) -> None:
        uploads.join(session, ledger.fence, upload.id, digest)

    with ledger.database.read() as session:
        parts, missing = uploads.list_parts(session, upload.id), uploads.missing_parts(session, upload)
    if missing:  # an earlier attempt has found that
        raise _no_upload(missing, "missing")
    for last in (False, False, True):
        digest = _join(ledger, store, upload, parts, poll)
        try:
            with store.keeping([(digest, upload.size)]):
                ledger.write(commit)
            break
        except BlobError:  # this process was frozen for so long that a sweep found it old
            if last:
                raise
    shutil.rmtree(ledger.settings.uploads / upload.id, ignore_errors=True)
    return store.path(digest, upload.size)


def _join(ledger: Ledger, store: BlobStore, upload: Upload, parts: list[UploadPart], poll: Poll) -> str:
    """The digest of the file that the parts make, which lies in the store.

    Raises:
        TrainingError: it is not the one that was announced; or, of kind system, a part is not what had arrived, and is
            missing again.
    """
    paths = {part.number: ledger.settings.home / part.path for part in parts}
    try:
        if upload.announced is None:  # nothing else tells whether the disk kept them
            damaged = [part.number for part in parts if checkpoint.file_digest(paths[part.number], poll) != part.digest]
            if damaged:
                raise _lost(ledger, upload, damaged, "damaged on the service's disk")
        digest, size = store.put(*paths.values(), poll=poll)
    except FileNotFoundError as error:
        gone = [number for number, path in paths.items() if not path.exists()]
        if not gone:
            raise TrainingError("disk", f"the parts cannot be joined: {error.strerror}", "system") from error
        raise _lost(ledger, upload, gone, "no longer on the service's disk") from error
    if upload.announced not in (None, digest) or size != upload.size:
        what = f"its {len(parts)} parts make {size} bytes with the digest {digest}"
        raise TrainingError("digest_mismatch", f"{what}; {upload.size} bytes with {upload.announced} were announced")
    return digest


def _lost(ledger: Ledger, upload: Upload, numbers: list[int], how: str) -> TrainingError:
    """The error of parts that are not what had arrived, which their owner can send again."""
    if ledger.settings.uploads.is_dir():  # a disk that is away may come back
        ledger.write(lambda session: uploads.lose_parts(session, ledger.fence, upload.id, numbers))
    return _no_upload(numbers, how)


def _no_upload(numbers: list[int], how: str) -> TrainingError:
    message = f"of the upload's parts these are {how}: {uploads.name_parts(numbers)}; send them again and complete it"
    return TrainingError("no_upload", message, "system")
