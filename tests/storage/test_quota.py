"""What an owner's uploads take together."""

import pytest

from storage import attempts, quota, records, uploads
from storage.errors import QuotaError
from storage.ids import new_id


def test_what_a_check_wrote_counts_as_well(jobs, database):
    spec = {"name": "a", "priority": 10_000, "device": "cpu", "labels": {}}
    with database.write() as session:
        row = uploads.create(
            session, new_id("mdl"), kind="model", owner="alice", name="a", file="", size=50, part_size=100, options={}
        )
        uploads.add_part(session, row, 1, size=50, digest="d", path="uploads/mdl_a/1")
        uploads.complete(session, row, spec=spec, spec_digest="s", max_queued=9)
    with database.write() as session:
        quota.refuse_over_quota(session, "alice", 350, 400)
    fence = jobs.claim()
    with database.write() as session:
        weights = records.NewArtifact("weights.safetensors", "sha256:x", 300, "application/octet-stream")
        records.publish(session, fence, [weights])
        attempts.succeed(session, fence, {"profile": {}})
    with database.write() as session:
        quota.refuse_over_quota(session, "alice", 50, 400)
        quota.refuse_over_quota(session, "bob", 400, 400)
        with pytest.raises(QuotaError, match="your uploads have 350 bytes"):
            quota.refuse_over_quota(session, "alice", 51, 400)
