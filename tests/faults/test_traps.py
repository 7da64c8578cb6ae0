"""The traps attach to the house as it is today, and the mutations break it where they say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.service import ROOT, TRAPS

PROLOGUE = """
import sys
from pathlib import Path
sys.orig_argv = ["python", "-m", "distillery", "worker"]
folder = Path({folder!r})
"""


@pytest.fixture
def trapped(tmp_path: Path) -> "Trapped":
    return Trapped(tmp_path)


class Trapped:
    """A process that lives under the traps, as every process of the service does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("armed", "sprung"):
            (folder / part).mkdir()

    def arm(self, moment: str, action: str, argument: Any = None, **condition: Any) -> None:
        order = {"id": moment, "action": action, "argument": argument, **condition}
        (self.folder / "armed" / moment).write_text(json.dumps(order))

    def run(self, script: str, mutation: str = "") -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "FAULTS_FOLDER": str(self.folder),
            "FAULTS_MUTATION": mutation,
            "PYTHONPATH": os.pathsep.join([str(TRAPS), str(ROOT)]),
        }
        code = PROLOGUE.format(folder=str(self.folder)) + script
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
        )

    def sprung(self, moment: str) -> bool:
        return (self.folder / "sprung" / f"{moment}.json").exists()


UPLOAD = """
from storage.blobs import BlobStore
(folder / "source").write_bytes(bytes(1000))
BlobStore(folder / "blobs").put(folder / "source")
"""


def test_a_kill_inside_an_upload_leaves_half_a_file_under_no_name(trapped: Trapped) -> None:
    trapped.arm("upload.write", "kill")
    assert trapped.run(UPLOAD).returncode == -9
    [left] = [path for path in (trapped.folder / "blobs").rglob("*") if path.is_file()]
    assert left.name.endswith(".tmp")
    assert left.stat().st_size == 500
    assert trapped.run(UPLOAD).returncode == 0, "the order was carried out once"


def test_written_in_place_half_a_file_has_its_name(trapped: Trapped) -> None:
    trapped.arm("upload.write", "kill")
    assert trapped.run(UPLOAD, mutation="artifacts_in_place").returncode == -9
    [left] = [path for path in (trapped.folder / "blobs").rglob("*") if path.is_file()]
    assert len(left.name) == 64
    assert left.stat().st_size == 500


READ = """
from kdcore import checkpoint
from kdcore.errors import TrainingError
path, digest = checkpoint.save(folder / "checkpoints", {"spec_digest": "one"})
for _ in range(2):
    try:
        print(checkpoint.load(path, spec_digest="one", digest=digest)["spec_digest"])
    except TrainingError as error:
        print(error.code, error.kind)
"""


def test_a_checkpoint_cannot_be_read_once(trapped: Trapped) -> None:
    trapped.arm("checkpoint.read", "error", 5)
    done = trapped.run(READ)
    assert done.stdout.splitlines() == ["disk system", "one"], done.stderr


COMMIT = """
from sqlalchemy.exc import OperationalError
from storage import attempts, queries, records, schema, submissions
from storage.database import Database
from storage.lifecycle import Fence
database = Database(f"sqlite:///{folder}/rows.db")
schema.ensure(database)
with database.write() as session:
    job = submissions.submit(session, owner="o", spec={"name": "a", "priority": 0, "device": "auto", "labels": {}},
                             spec_digest="one", plan={}, idempotency_key=None, max_queued=9)
    attempts.claim(session, "w", ("auto",), 30.0)
try:
    with database.write() as session:
        records.record_checkpoint(session, Fence(job, 1), stage="s", epoch=0, step=1, path="p", digest="d", size=1)
except OperationalError:
    with database.read() as session:
        print(len(queries.list_checkpoints(session, job)))
"""


def test_a_checkpoints_row_is_committed_though_its_writer_hears_that_the_connection_is_lost(trapped: Trapped) -> None:
    trapped.arm("checkpoint.committed", "lose_reply")
    done = trapped.run(COMMIT)
    assert done.stdout.split() == ["1"], done.stderr


ALL = """
from importlib import import_module
from sitecustomize import MOMENTS
for name in MOMENTS:
    import_module(name)
from storage.reconciler import _take_back
print(_take_back(None, None))
"""


def test_every_trap_finds_what_it_is_for(trapped: Trapped) -> None:
    done = trapped.run(ALL, "no_takeover")
    assert done.stdout.split() == ["[]"], done.stderr


PUBLISH = """
from types import SimpleNamespace
from storage.lifecycle import Fence
from worker import attempt

class Ledger(SimpleNamespace):
    def write(self, action):
        print("attempt" in str(self.fence.holds()))

(folder / "out").mkdir(exist_ok=True)
(folder / "out" / "result.json").write_text("{}")
ledger = Ledger(settings=SimpleNamespace(blobs=folder / "blobs"), fence=Fence("job", 1))
attempt.publish(ledger, SimpleNamespace(id="job"), folder / "out", {})
"""


def test_publishing_asks_for_its_attempt_unless_the_house_is_broken(trapped: Trapped) -> None:
    trapped.arm("publish", "slow", 0.0)
    for mutation, checked in (("", "True"), ("unfenced_finish", "False")):
        done = trapped.run(PUBLISH, mutation)
        assert done.stdout.split() == [checked], done.stderr
    assert trapped.sprung("publish")
