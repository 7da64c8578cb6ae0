"""What a worker's jobs leave each other: a trained teacher, and what it says; the students' bytes are the same."""

from typing import Any

import pytest
from sqlalchemy import select

from storage.tables import Artifact

from .conftest import SPEC, Rig

SHORT: dict[str, Any] = SPEC | {"stages": [{"epochs": 5}]}


@pytest.mark.timeout(600)
def test_the_second_job_trains_no_teacher_and_asks_it_nothing(rig: Rig) -> None:
    rig.start()
    jobs = [rig.submit({**SHORT, "name": name, "profile": name == "second"}) for name in ("first", "second")]
    rig.until(lambda: all(rig.job(job).status in ("succeeded", "failed") for job in jobs), 400)
    first, second = map(rig.job, jobs)
    assert (first.error, second.error) == (None, None)
    assert (first.result or {})["reused"] == {}
    spent = (first.result or {})["seconds"]["teacher-1"]
    assert (second.result or {})["reused"]["teacher-1"]["trained_seconds"] == spent
    assert rig.last(second.id, "teacher_reused").data["seconds"] == spent
    assert rig.last(second.id, "targets_kept").data["reused"]
    assert rig.student(second.id) == rig.student(first.id)
    with rig.database.read() as session:
        found = session.scalars(select(Artifact).where(Artifact.job_id == second.id))
        kinds = {artifact.name: artifact.media_type for artifact in found if artifact.name.startswith("profile")}
    assert kinds == {
        "profile-distill-1.json.gz": "application/gzip",
        "profile-distill-1.txt": "text/plain; charset=utf-8",
    }
