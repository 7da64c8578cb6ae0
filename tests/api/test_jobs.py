"""Listing, showing and moving jobs; ETag and `?wait`."""

import threading
import time

import httpx
import pytest

from storage import attempts
from tests.api.conftest import SPEC, Api, eventually, said, serving, submit
from tests.conftest import embedded

NOBODYS = "job_01k2v9h3m4n5p6q7r8s9t0v1w2"


def test_pages_newest_first_and_all_of_them(client: httpx.Client):
    ids = [submit(client)["id"] for _ in range(5)]
    found, after = [], None
    for _ in range(3):
        page = client.get("/jobs", params={"limit": 2} | ({"after": after} if after else {})).json()
        found += [job["id"] for job in page["data"]]
        after = page["next"]
    assert sorted(found) == sorted(ids)
    assert found == sorted(ids, reverse=True)
    assert (page["has_more"], page["next"]) == (False, None)
    assert "spec" not in page["data"][0]


def test_a_page_is_not_shifted_by_new_jobs(client: httpx.Client):
    old = sorted(submit(client)["id"] for _ in range(3))
    first = client.get("/jobs?limit=2").json()
    time.sleep(0.002)
    submit(client)
    second = client.get("/jobs", params={"after": first["next"]}).json()
    assert [job["id"] for job in second["data"]] == [old[0]]


def test_filters(api: Api, client: httpx.Client):
    one = submit(client, name="one", labels={"team": "vision", "run": "a:b=c"})["id"]
    two = submit(client, name="two", labels={"team": "vision"})["id"]
    client.post(f"/jobs/{two}/pause")

    def ids(query: str) -> set[str]:
        response = client.get(f"/jobs?{query}")
        assert response.status_code == 200, response.text
        return {job["id"] for job in response.json()["data"]}

    assert ids("name=one") == {one}
    assert ids("status=paused") == {two}
    assert ids("label=team:vision") == ids("label=team=vision") == {one, two}
    assert ids("label=team:vision&label=run:a:b%3Dc") == {one}
    assert ids("label=team:sound") == ids("name=nobody") == set()


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit"), ("status=done", "status"),
        ("label=team", "label"), ("label=:x", "label"), ("statsu=queued", "statsu"), ("name=%00", "name"),
        ("label=a:b&" * 33, "label"), ("after=nonsense", "after"),
        (f"after={NOBODYS}", "after"), (f"after={NOBODYS}.000000000000", "after"),
    ],
)  # fmt: skip
def test_bad_queries_are_422_and_say_which_part(files_client: httpx.Client, query: str, part: str):
    problem = said(files_client.get(f"/jobs?{query}"), 422, "invalid_parameter")
    assert [error["loc"][:2] for error in problem["errors"]] == [["query", part]]


def test_an_unknown_parameter_is_told_which_there_are(files_client: httpx.Client):
    problem = said(files_client.get("/jobs?owner=me"), 422, "invalid_parameter")
    assert "after, label, limit, name, status" in problem["detail"]
    job_id = submit(files_client)["id"]
    said(files_client.get(f"/jobs/{job_id}?wiat=3"), 422, "invalid_parameter")


def test_a_cursor_that_was_changed_is_refused(files_client: httpx.Client):
    for _ in range(2):
        submit(files_client)
    cursor = files_client.get("/jobs?limit=1").json()["next"]
    for place in range(len(cursor)):
        changed = cursor[:place] + ("0" if cursor[place] != "0" else "1") + cursor[place + 1 :]
        said(files_client.get("/jobs", params={"after": changed}), 422, "invalid_parameter")
    said(files_client.get("/jobs", params={"after": cursor, "name": "other"}), 422, "invalid_parameter")
    assert files_client.get("/jobs", params={"after": cursor}).status_code == 200


@pytest.mark.parametrize("job_id", [NOBODYS, "job_1", "nonsense", "..", "%00", "job_" + "I" * 26, NOBODYS + "%0a"])
def test_what_is_no_job_is_404_everywhere(client: httpx.Client, job_id: str):
    for method, path in [
        ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/retry"),
        ("GET", "/metrics"), ("GET", "/events"), ("GET", "/logs"), ("GET", "/checkpoints"), ("GET", "/artifacts"),
        ("GET", "/artifacts/student.onnx"),
    ]:  # fmt: skip
        if job_id == "..":  # clients fold it into another path
            continue
        said(client.request(method, f"/jobs/{job_id}{path}"), 404, "not_found")


def test_another_owners_job_is_404_everywhere(api: Api, client: httpx.Client, owners):
    job_id = submit(client)["id"]
    api.succeed(api.claim(job_id), {"student.onnx": b"x"})
    with api.client(next(owners)) as stranger:
        for method, path in [
            ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/metrics"),
            ("GET", "/events"), ("GET", "/logs"), ("GET", "/checkpoints"), ("GET", "/artifacts"),
            ("GET", "/artifacts/student.onnx"),
        ]:  # fmt: skip
            said(stranger.request(method, f"/jobs/{job_id}{path}"), 404, "not_found")
        stream = stranger.get(f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"})
        said(stream, 404, "not_found")
        assert stranger.get("/jobs").json()["data"] == []
    assert client.get(f"/jobs/{job_id}").status_code == 200


def brought_to(api: Api, client: httpx.Client, status: str) -> str:
    """A job of that status; `running+cancel` has that request pending."""
    job_id: str = submit(client)["id"]
    status, _, request = status.partition("+")
    if status == "paused":
        client.post(f"/jobs/{job_id}/pause")
    elif status == "cancelled":
        client.post(f"/jobs/{job_id}/cancel")
    elif status != "queued":
        fence = api.claim(job_id)
        if request:
            client.post(f"/jobs/{job_id}/{request}")
        if status == "succeeded":
            api.succeed(fence)
        elif status == "failed":
            api.end(fence, "failed")
    return job_id


TRANSITIONS = {  # (status after, request after), or None: 409
    "queued": {
        "cancel": ("cancelled", None), "pause": ("paused", None), "resume": ("queued", None), "retry": ("queued", None),
    },
    "running": {"cancel": ("running", "cancel"), "pause": ("running", "pause"), "resume": None, "retry": None},
    "running+pause": {"cancel": ("running", "cancel"), "pause": ("running", "pause"), "resume": None, "retry": None},
    "running+cancel": {"cancel": ("running", "cancel"), "pause": None, "resume": None, "retry": None},
    "paused": {"cancel": ("cancelled", None), "pause": ("paused", None), "resume": ("queued", None), "retry": None},
    "succeeded": {"cancel": None, "pause": None, "resume": None, "retry": None},
    "failed": {"cancel": None, "pause": None, "resume": None, "retry": ("queued", None)},
    "cancelled": {"cancel": ("cancelled", None), "pause": None, "resume": None, "retry": ("queued", None)},
}  # fmt: skip


@pytest.mark.parametrize("status", TRANSITIONS)
def test_every_action_in_every_status(api: Api, client: httpx.Client, status: str):
    for action, outcome in TRANSITIONS[status].items():
        job_id = brought_to(api, client, status)
        before = client.get(f"/jobs/{job_id}").json()
        response = client.post(f"/jobs/{job_id}/{action}")
        if outcome is None:
            problem = said(response, 409, "conflict")
            assert before["status"] in problem["detail"] or "outranks" in problem["detail"]
            assert client.get(f"/jobs/{job_id}").json() == before
        else:
            assert response.status_code == 200, (action, response.text)
            assert (response.json()["status"], response.json()["request"]) == outcome
            assert client.post(f"/jobs/{job_id}/{action}").status_code == 200  # asking again changes nothing


@pytest.mark.parametrize("status", TRANSITIONS)
def test_only_what_has_ended_is_deleted(api: Api, client: httpx.Client, status: str):
    job_id = brought_to(api, client, status)
    folder = api.settings.jobs / job_id
    (folder / "attempt-1").mkdir(parents=True)
    response = client.delete(f"/jobs/{job_id}")
    if status in ("succeeded", "failed", "cancelled"):
        assert (response.status_code, response.content) == (204, b"")
        said(client.get(f"/jobs/{job_id}"), 404, "not_found")
        said(client.delete(f"/jobs/{job_id}"), 404, "not_found")
        eventually(lambda: not folder.exists())
    else:
        said(response, 409, "conflict")
        assert client.get(f"/jobs/{job_id}").status_code == 200
        assert folder.exists()


def test_a_finished_job_shows_its_numbers(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    fence = api.claim(job_id)
    progress = {"stage": "distill-1", "epoch": 1, "epochs": 2, "step": 3, "steps": 42, "fraction": 0.5,
                "samples_per_second": 10.0, "eta_seconds": 1.5}  # fmt: skip
    api.report(fence, stage="distill-1", progress=progress)
    running = client.get(f"/jobs/{job_id}").json()
    assert (running["status"], running["stage"], running["attempt"]) == ("running", "distill-1", 1)
    assert running["queue"] is None
    assert running["progress"] == {key: value for key, value in progress.items() if key != "stage"}
    result = {
        "summary": "small",
        "teacher": {"accuracy": 0.99, "parameters": 10, "confusion_matrix": [[1]], "per_class_accuracy": [1.0]},
        "baseline": None,
        "student": {"accuracy": 0.9, "agreement": 0.95, "confusion_matrix": [[1]]},
    }
    api.succeed(fence, result=result)
    job = client.get(f"/jobs/{job_id}").json()
    assert job["status"] == "succeeded"
    assert job["result"]["teacher"] == {"accuracy": 0.99, "parameters": 10}
    assert job["result"]["baseline"] is None
    assert job["result"]["student"]["agreement"] == 0.95
    assert "confusion_matrix" not in str(job)
    assert job["started_at"] < job["finished_at"]


def test_a_failed_job_says_why(api: Api, client: httpx.Client):
    job_id = brought_to(api, client, "failed")
    error = {"code": "diverged", "kind": "user", "message": "nan at step 3"}
    assert client.get(f"/jobs/{job_id}").json()["error"] == error
    assert client.post(f"/jobs/{job_id}/retry").json()["error"] is None


def test_a_queued_job_says_why_it_waits(tmp_path):
    with serving(embedded(tmp_path, min_free_bytes=0)) as api, api.client() as client:
        job_id = submit(client, device="cuda")["id"]
        second = submit(client)["id"]
        assert client.get(f"/jobs/{job_id}").json()["queue"] == {"position": 1, "reason": "no worker is running"}
        assert client.get(f"/jobs/{second}").json()["queue"]["position"] == 2
        with api.worker("cpu"):
            assert client.get(f"/jobs/{job_id}").json()["queue"]["reason"] == "no worker with cuda"


def test_etag_and_304(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    first = client.get(f"/jobs/{job_id}")
    etag = first.headers["etag"]
    for sent in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        same = client.get(f"/jobs/{job_id}", headers={"If-None-Match": sent})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    client.post(f"/jobs/{job_id}/pause")
    changed = client.get(f"/jobs/{job_id}", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def timed(client: httpx.Client, url: str, **headers: str) -> tuple[float, httpx.Response]:
    begun = time.monotonic()
    response = client.get(url, headers=headers)
    return time.monotonic() - begun, response


def test_wait_ends_with_its_time_or_at_once_where_all_is_over(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    seconds, response = timed(client, f"/jobs/{job_id}?wait=0.4")
    assert 0.35 < seconds < 3
    assert response.json()["status"] == "queued"
    client.post(f"/jobs/{job_id}/cancel")
    seconds, response = timed(client, f"/jobs/{job_id}?wait=30")
    assert seconds < 3
    assert response.json()["status"] == "cancelled"


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "x", ""])
def test_a_bad_wait_is_422(files_client: httpx.Client, wait: str):
    job_id = submit(files_client)["id"]
    said(files_client.get(f"/jobs/{job_id}?wait={wait}"), 422, "invalid_parameter")


def test_two_waiters_hear_of_status_stage_and_request(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]

    def change(do) -> list[dict]:
        answers: list[dict] = []
        waiters = [
            threading.Thread(target=lambda: answers.append(client.get(f"/jobs/{job_id}?wait=15").json()))
            for _ in range(2)
        ]
        for waiter in waiters:
            waiter.start()
        eventually(lambda: len(api.service.watcher) >= 2)
        begun = time.monotonic()
        do()
        for waiter in waiters:
            waiter.join(10)
        assert time.monotonic() - begun < 5
        assert len(answers) == 2
        return answers

    fences = []
    assert [a["status"] for a in change(lambda: fences.append(api.claim(job_id)))] == ["running"] * 2
    assert [a["stage"] for a in change(lambda: api.report(fences[0], stage="teacher-1"))] == ["teacher-1"] * 2
    assert [a["request"] for a in change(lambda: client.post(f"/jobs/{job_id}/pause"))] == ["pause"] * 2
    assert [a["status"] for a in change(lambda: api.end(fences[0], "pause"))] == ["paused"] * 2
    eventually(lambda: len(api.service.watcher) == 0)


def test_progress_alone_does_not_end_a_wait(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    fence = api.claim(job_id)
    timer = threading.Timer(0.2, lambda: api.report(fence, progress={"fraction": 0.5}))
    timer.start()
    seconds, response = timed(client, f"/jobs/{job_id}?wait=0.8")
    timer.join()
    assert seconds > 0.7
    assert response.json()["progress"]["fraction"] == 0.5


def test_wait_with_an_etag(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    old = client.get(f"/jobs/{job_id}").headers["etag"]
    seconds, response = timed(client, f"/jobs/{job_id}?wait=0.3", **{"If-None-Match": old})
    assert (response.status_code, seconds > 0.25) == (304, True)
    client.post(f"/jobs/{job_id}/pause")
    seconds, response = timed(client, f"/jobs/{job_id}?wait=20", **{"If-None-Match": old})
    assert (response.status_code, seconds < 5) == (200, True)


def test_a_waiter_of_a_job_that_is_deleted_gets_404(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    fence = api.claim(job_id)
    answers = []
    waiter = threading.Thread(target=lambda: answers.append(client.get(f"/jobs/{job_id}?wait=15")))
    waiter.start()
    eventually(lambda: len(api.service.watcher) == 1)
    with api.database.write() as session:
        attempts.yield_job(session, fence, "cancel")
    client.delete(f"/jobs/{job_id}")
    waiter.join(10)
    assert answers[0].status_code in (200, 404)  # it may have heard of the end before the deletion


def test_a_client_that_hangs_up_frees_its_waiter(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    with pytest.raises(httpx.ReadTimeout):
        client.get(f"/jobs/{job_id}?wait=30", timeout=httpx.Timeout(5, read=0.3))
    eventually(lambda: len(api.service.watcher) == 0)


def test_too_many_waiters_are_503_and_hold_nobody_up(tmp_path):
    with serving(embedded(tmp_path, max_streams=2, poll_seconds=0.05, min_free_bytes=0)) as api, api.client() as client:
        job_id = submit(client)["id"]
        waiters = [threading.Thread(target=client.get, args=(f"/jobs/{job_id}?wait=20",)) for _ in range(2)]
        for waiter in waiters:
            waiter.start()
        eventually(lambda: len(api.service.watcher) == 2)
        response = client.get(f"/jobs/{job_id}?wait=20")
        said(response, 503, "too_many_streams")
        assert int(response.headers["retry-after"]) > 0
        said(client.get(f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}), 503, "too_many_streams")
        assert client.post("/jobs", json=SPEC).status_code == 201
        client.post(f"/jobs/{job_id}/cancel")
        for waiter in waiters:
            waiter.join(10)
        assert len(api.service.watcher) == 0
