"""Identifiers."""

import time

from storage.ids import JOB_ID, new_id


def test_ids_are_unique_and_of_one_form():
    ids = {new_id("job") for _ in range(5_000)}
    assert len(ids) == 5_000
    assert all(JOB_ID.match(id) for id in ids)
    assert new_id("ds").startswith("ds_")


def test_ids_sort_by_time(monkeypatch):
    moments = [0, 1, 1_000, 1_700_000_000_000, time.time_ns() // 1_000_000, 4_000_000_000_000]
    ids = []
    for moment in moments:
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment * 1_000_000)
        ids.append(new_id("job"))
    assert ids == sorted(ids)


def test_what_is_no_id():
    good = new_id("job")
    for bad in (
        "",
        "job_",
        good[:-1],
        good + "0",
        good + "\n",
        " " + good,
        good.upper(),
        good[:-1] + "u",
        "ds" + good[3:],
    ):
        assert not JOB_ID.match(bad), bad
