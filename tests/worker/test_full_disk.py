"""A disk that is full while a worker checks an upload: nothing is lost, nothing half-made stays, and once there is room
the upload is ready.

What limits the size of a file stands for the full disk; the database's server has none.
"""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from storage import attempts, uploads
from storage.database import Database
from storage.lifecycle import Fence
from storage.settings import Settings
from tests.disks import files_of_at_most
from tests.worker.conftest import environment
from tests.worker.test_checks import CHECK, put_upload
from worker import attempt
from worker.wire import Inbox

deployed = pytest.mark.parametrize("settings", ["deployed"], indirect=True)


def arrays() -> bytes:
    """22 kB, which do not fit: as joined."""
    file = io.BytesIO()
    generator = np.random.default_rng(0)
    np.savez(file, inputs=generator.integers(0, 256, (300, 8, 8)).astype(np.uint8), labels=np.arange(300) % 10)
    return file.getvalue()


def shards() -> bytes:
    """Two tables of 40 kB, packed well: as copied to be read."""
    rows = "text,label\n" + "".join(f"word {n} {'and so on ' * 8},{'ab'[n % 2]}\n" for n in range(400))
    others = rows.replace("word", "another")
    return packed({"train-0.csv": rows.encode(), "test-0.csv": others.encode()})


def small_pictures() -> bytes:
    """100 of 8 by 8 pixels: the page that shows them is larger than they are."""
    found = {}
    for n, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3)).astype(np.uint8)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        found[f"{'ab'[n % 2]}/{n}.png"] = file.getvalue()
    return packed(found)


def packed(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def files_of(settings: Settings) -> set[Path]:
    return {path for path in settings.home.rglob("*") if path.is_file()} - {settings.blobs / ".lock"}


@deployed
@pytest.mark.parametrize(
    ("made", "room", "joined", "options"),
    [
        (arrays, 16_384, False, {}),
        (shards, 20_000, True, {"labels": ["label"], "inputs": ["text"]}),
        (small_pictures, 60_000, True, {}),
    ],
    ids=["joined file", "a table's copy", "thumbnails"],
)
def test_a_check_that_met_a_full_disk_is_tried_again_and_loses_nothing(
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[], bytes],
    room: int,
    joined: bool,
    options: dict[str, Any],
) -> None:
    quick = settings.model_copy(update={"retry_backoff_seconds": 0.0})
    for name, value in environment(quick).items():
        if name.startswith("DISTILLERY_"):
            monkeypatch.setenv(name, value)
    upload_id = put_upload(database, quick, made(), kind="dataset", options=options)
    parts = files_of(quick)

    def look() -> uploads.Found:
        with database.read() as session:
            return uploads.get_upload(session, "dataset", upload_id, "alice")

    with files_of_at_most(room):
        for _ in range(quick.max_failures):
            assert look().status == "checking"
            run_check(database)
            left = files_of(quick)
            assert left == parts if not joined else len(left) == 1
    found = look()
    assert found.status == "failed"
    assert found.error is not None
    assert (found.error["code"], found.error["kind"]) == ("disk", "system")
    assert "the disk is full" in found.error["message"]
    with database.write() as session:
        uploads.complete(session, found.upload, spec=CHECK, spec_digest="sha256:x", max_queued=10)
    run_check(database)
    with database.read() as session:
        ready = uploads.get_upload(session, "dataset", upload_id, "alice")
        assert ready.status == "ready"
        assert ready.profile is not None
        assert ready.profile["samples"]["test"] > 0


def run_check(database: Database) -> None:
    with database.write() as session:
        job = attempts.claim(session, "w1", ("auto", "cpu"), 60.0)
    assert job is not None
    attempt.run(Fence(job.id, job.attempt), cast(Inbox, SimpleNamespace(request=None)))
