"""`distillery calibrate` beside real workers, and a student that is picked by what it measured. Both forms."""

import json
import subprocess
import sys

from sqlalchemy import select

from kdcore.machine_speed import MachineSpeed
from kdcore.plan import make_plan
from kdcore.spec import parse_spec, spec_document
from storage import calibrations
from storage.blobs import BlobStore
from storage.tables import Artifact, Calibration

from .conftest import SPEC, Rig, environment


def calibrate(rig: Rig) -> MachineSpeed:
    done = subprocess.run(
        [sys.executable, "-m", "distillery", "calibrate"],
        env=environment(rig.settings), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "GFLOP/s" in done.stdout
    with rig.database.read() as session:
        [stored] = calibrations.newest(session, "auto", 60)  # measured again, it takes the other's place
    return MachineSpeed.model_validate(stored)


def test_a_picked_student_stays_what_it_is_on_a_slower_machine(rig: Rig) -> None:
    first = calibrate(rig)
    short = {"epochs": 2, "batch_size": 64}
    wished = SPEC | {
        "student": {"max_latency_ms": 0.05, "family": "mlp"},
        "teachers": [{"model": {"type": "mlp", "hidden": [8]}, "train": short}],
        "stages": [short],
    }
    spec = parse_spec(wished, first)
    choice = make_plan(spec, first).student_choice
    assert choice is not None
    assert choice.latency_ms is not None
    assert choice.latency_ms <= 0.05
    job_id = rig.submit(spec_document(spec))
    with rig.database.write() as session:
        slow = first.model_copy(update={"call": 1.0}).model_dump(mode="json")
        calibrations.store(session, session.scalars(select(Calibration.hostname)).one(), "cpu", slow)
    rig.start()
    job = rig.until(lambda: (job := rig.job(job_id)).status in ("succeeded", "failed") and job, 200)
    assert job.error is None
    assert job.result is not None
    budget = job.result["latency_budget"]
    assert budget["measured_ms"] == job.result["student"]["latency_ms"]["p50"]
    assert budget["met"] == (budget["measured_ms"] <= 0.05)
    assert budget["met"] != any(event.type == "latency_missed" for event in rig.events(job_id))
    with rig.database.read() as session:
        artifact = session.get_one(Artifact, (job_id, "model.json"))
    model = json.loads(BlobStore(rig.settings.blobs).path(artifact.digest, artifact.size).read_text())
    assert model["architecture"]["hidden"] == spec_document(spec)["student"]["model"]["hidden"]
