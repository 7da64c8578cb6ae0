"""Keys, browsers, ids, health, figures, workers, catalogue, and what happens when parts are away."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import text

from api import housekeeping
from api.server import serve
from storage.database import Database
from storage.errors import SchemaError
from storage.settings import Settings
from storage.workers import set_status
from tests.api.conftest import SPEC, Api, eventually, said, serving, submit
from tests.conftest import POSTGRES, embedded
from tests.versions import schema_at

OPEN = ["/healthz", "/readyz", "/docs", "/openapi.json"]
KEYED = ["/jobs", "/workers", "/catalog/losses", "/catalog/spec", "/metrics"]


@pytest.mark.parametrize("key", [None, "", "x", "Bearer", "wrong-key-of-some-length", "\xe9" * 20])
def test_without_a_key_only_health_and_docs_are_open(files_api: Api, key: str | None):
    headers = {} if key is None else {"Authorization": f"Bearer {key}".strip().encode("latin-1")}
    with files_api.client() as client:
        for path in KEYED:
            response = client.get(path, headers=headers)
            said(response, 401, "unauthorized")
            assert response.headers["www-authenticate"].startswith("Bearer")
        said(client.post("/jobs", content=b"{", headers=headers), 401, "unauthorized")
        for path in OPEN:
            assert client.get(path, headers=headers).status_code in (200, 503), path


def test_each_key_is_an_owner_and_basic_is_none(files_api: Api, files_client: httpx.Client):
    assert files_client.get("/jobs").status_code == 200
    key = files_client.headers["authorization"].split()[1]
    assert files_client.get("/jobs", headers={"Authorization": f"bearer {key}"}).status_code == 200
    said(files_client.get("/jobs", headers={"Authorization": f"Basic {key}"}), 401, "unauthorized")


@pytest.fixture(scope="module")
def open_api(tmp_path_factory: pytest.TempPathFactory):
    """A server without keys."""
    home = tmp_path_factory.mktemp("open")
    with serving(embedded(home, min_free_bytes=0)) as api, api.client() as client:
        yield api, client


def test_without_keys_everybody_is_local(open_api):
    _, client = open_api
    assert submit(client)["id"] in [job["id"] for job in client.get("/jobs").json()["data"]]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1"])
def test_without_keys_pages_of_other_origins_change_nothing(open_api, origin: str):
    api, client = open_api
    before = client.get("/jobs").json()["data"]
    for method, path in [("POST", "/jobs"), ("POST", "/jobs/plan"), ("DELETE", "/jobs/x")]:
        said(client.request(method, path, json=SPEC, headers={"Origin": origin}), 403, "forbidden")
    assert client.get("/jobs").json()["data"] == before
    assert client.get("/jobs", headers={"Origin": origin}).headers.get("access-control-allow-origin") is None
    assert client.post("/jobs/plan", json=SPEC, headers={"Origin": api.url}).status_code == 200


def test_without_keys_only_loopback_names_are_answered(open_api):
    api, client = open_api
    for host in ("evil.example", f"evil.example:{api.port}", "10.0.0.1", "[::1", "127.0.0.1.evil.example"):
        said(client.get("/jobs", headers={"Host": host}), 403, "forbidden")
    for host in ("localhost", f"LOCALHOST:{api.port}", "127.0.0.1", "[::1]:80", "127.8.8.8"):
        assert client.get("/jobs", headers={"Host": host}).status_code == 200, host


@pytest.mark.parametrize(("allowed", "statuses"), [(None, [200, 200, 200]), (["lab.example"], [200, 200, 403])])
def test_beyond_loopback_the_allowed_hosts_count(tmp_path: Path, allowed: list[str] | None, statuses: list[int]):
    settings = embedded(tmp_path, host="0.0.0.0", allow_unauthenticated_bind=True, allowed_hosts=allowed)
    with serving(settings) as api:  # on loopback, where only the test can reach it
        hosts = ("127.0.0.1", "lab.example:80", "evil.example")
        assert [httpx.get(f"{api.url}/jobs", headers={"Host": host}).status_code for host in hosts] == statuses


def test_with_keys_any_host_and_origin_will_do(files_client: httpx.Client):
    headers = {"Host": "distillery.example", "Origin": "https://dashboard.example"}
    assert files_client.post("/jobs/plan", json=SPEC, headers=headers).status_code == 200


def test_request_ids_are_kept_or_made(files_client: httpx.Client):
    assert files_client.get("/healthz", headers={"X-Request-ID": "my-id.1"}).headers["x-request-id"] == "my-id.1"
    for bad in ("", "a b", "x" * 65, "<script>", "a\tb"):
        made = files_client.get("/nothing", headers={"X-Request-ID": bad})
        assert made.headers["x-request-id"].startswith("req_")
        assert made.json()["request_id"] == made.headers["x-request-id"]


def test_every_answer_has_safe_headers(files_client: httpx.Client):
    for path in ("/healthz", "/jobs", "/nothing", "/docs", "/jobs?limit=0"):
        response = files_client.get(path)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert "server" not in response.headers or "uvicorn" in response.headers["server"]


def test_wrong_paths_and_methods_are_problems(files_client: httpx.Client):
    said(files_client.get("/nothing"), 404, "not_found")
    said(files_client.get("/jobs/"), 404, "not_found")
    response = files_client.put("/jobs")
    said(response, 405, "method_not_allowed")
    assert {"GET", "POST"} <= set(response.headers["allow"].replace(" ", "").split(","))
    said(files_client.request("PROPFIND", "/jobs"), 405, "method_not_allowed")


def test_a_fault_of_ours_says_nothing_but_its_request_id(
    files_api: Api, files_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("secret: /home/someone")

    monkeypatch.setattr("api.routes.jobs.page_jobs", fail)
    with structlog.testing.capture_logs() as lines:
        response = files_client.get("/jobs")
    problem = said(response, 500, "internal")
    assert "secret" not in response.text
    assert any(line["event"] == "request failed" for line in lines)
    assert problem["request_id"]
    assert files_client.get("/jobs", params={"limit": 0}).status_code == 422


def test_requests_are_logged_without_specs_and_keys(files_api: Api, files_client: httpx.Client):
    with structlog.testing.capture_logs() as lines:
        job_id = submit(files_client, labels={"secret": "do-not-log-me"})["id"]
        files_client.get(f"/jobs/{job_id}?wait=0")
        files_client.get("/jobs?name=do-not-log-me")
        eventually(lambda: len([line for line in lines if line["event"] == "request"]) == 3)
    shown = json.dumps([line for line in lines if line["event"] == "request"])
    assert "do-not-log-me" not in shown
    assert files_client.headers["authorization"].split()[1] not in shown
    posted, got, _ = json.loads(shown)
    assert (posted["method"], posted["route"], posted["status"]) == ("POST", "/jobs", 201)
    assert (got["route"], got["job_id"]) == ("/jobs/{job_id}", job_id)
    assert got["ms"] > 0


def test_ready_says_what_is_missing(settings: Settings):
    with serving(settings) as api, api.client() as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        response = client.get("/readyz")
        problem = said(response, 503, "not_ready")
        assert [error["loc"] for error in problem["errors"]] == [["worker"]]
        assert "retry-after" in response.headers
        with api.worker():
            ready = client.get("/readyz").json()
            assert ready["status"] == "ready"
            assert [warning["code"] for warning in ready["warnings"] if warning["code"] != "disk_low"] == []
            with schema_at(api.database, "other"):
                assert [error["loc"] for error in client.get("/readyz").json()["errors"]] == [["schema"]]


def test_ready_warns_of_what_is_wrong_beside(settings: Settings):
    with serving(settings.model_copy(update={"min_free_bytes": 2**60})) as api, api.client() as client, api.worker():
        response = client.get("/readyz")
        (warning,) = [each for each in response.json()["warnings"] if each["code"] == "disk_low"]
        assert response.status_code == 200
        assert "delete jobs" in warning["message"]
        assert str(settings.home) not in response.text  # anyone may ask


def test_readiness_that_hangs_takes_no_thread_of_other_requests(
    files_api: Api, files_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    release = threading.Event()
    monkeypatch.setattr("storage.diagnosis.see_database", lambda *_: release.wait(30))
    with ThreadPoolExecutor(50) as pool:  # the server has 40 threads
        asked = [pool.submit(httpx.get, f"{files_api.url}/readyz", timeout=60, trust_env=False) for _ in range(50)]
        try:
            eventually(lambda: files_api.service.examining.borrowed_tokens > 0)
            time.sleep(0.3)
            begun = time.monotonic()
            assert files_client.get("/jobs").status_code == 200
            assert time.monotonic() - begun < 10  # of the 30 that it hangs
        finally:
            release.set()
        assert {each.result().status_code for each in asked} == {503}


def test_workers_are_listed_while_they_beat(api: Api, client: httpx.Client, owners):
    job_id = submit(client)["id"]
    with api.worker("cuda") as card:
        with api.database.write() as session:
            set_status(session, card.id, "busy", job_id)
        (worker,) = client.get("/workers").json()["data"]
        assert worker["device"] == "cuda"
        assert worker["memory_bytes"] == 2**30
        assert worker["job_id"] == job_id
        assert worker["heartbeat_at"].endswith("Z")
        with api.client(next(owners)) as stranger:
            (seen,) = stranger.get("/workers").json()["data"]
            assert (seen["status"], seen["job_id"]) == ("busy", None)
        with api.database.write() as session:
            session.execute(text("UPDATE workers SET heartbeat_at = heartbeat_at - 1000"))
        assert client.get("/workers").json() == {"data": []}


def test_the_catalogue_says_what_a_spec_may_name(files_client: httpx.Client):
    kinds = {kind: files_client.get(f"/catalog/{kind}").json()["data"] for kind in ("losses", "models", "data")}
    assert {"cross_entropy", "kd"} <= {entry["type"] for entry in kinds["losses"]}
    assert {"mlp", "cnn"} <= {entry["type"] for entry in kinds["models"]}
    assert {"digits", "mnist"} <= {entry["type"] for entry in kinds["data"]}
    for entries in kinds.values():
        for entry in entries:
            assert entry["source"]
            assert entry["schema"]["properties"]["type"]["const"] == entry["type"]
    assert "teachers" in files_client.get("/catalog/spec").json()["required"]


def sample(text: str, name: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.rsplit(" ", 1)[1])


def test_figures_for_prometheus(settings: Settings):
    with serving(settings) as api, api.client() as client:
        submit(client)
        fence = api.claim(submit(client)["id"])
        api.report(fence, progress={"samples_per_second": 1234.5})
        api.end(api.claim(submit(client)["id"]), "failed")
        time.sleep(0.05)
        response = client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        assert sample(response.text, 'distillery_jobs{status="queued"}') == 1
        assert sample(response.text, 'distillery_jobs{status="running"}') == 1
        assert sample(response.text, 'distillery_jobs{status="paused"}') == 0
        assert sample(response.text, "distillery_training_samples_per_second") == 1234.5
        assert sample(response.text, "distillery_queue_oldest_seconds") > 0
        assert sample(response.text, 'distillery_job_duration_seconds_count{status="failed"}') == 1
        assert sample(response.text, 'distillery_job_duration_seconds_bucket{le="1.0",status="failed"}') == 1
        assert sample(response.text, "distillery_database_up") == 1
        counted = 'distillery_http_requests_total{method="POST",route="/jobs",status="201"}'
        before = sample(response.text, counted)
        submit(client)
        eventually(lambda: sample(client.get("/metrics").text, counted) == before + 1)
        assert "job_0" not in client.get("/metrics").text


def test_without_a_database_each_answer_says_so(settings: Settings):
    with serving(settings) as api, api.client() as client:
        job_id = submit(client)["id"]
        with away(api):
            for response in (client.get("/jobs"), client.get(f"/jobs/{job_id}"), client.post("/jobs", json=SPEC)):
                problem = said(response, 503, "database_unavailable")
                assert int(response.headers["retry-after"]) > 0
                assert "sql" not in json.dumps(problem).lower()
            assert client.get("/healthz").status_code == 200
            assert ["database"] in [error["loc"] for error in client.get("/readyz").json()["errors"]]
            assert sample(client.get("/metrics").text, "distillery_database_up") == 0
            assert client.post("/jobs/plan", json=SPEC).status_code == 200
        assert client.get(f"/jobs/{job_id}").status_code == 200


@contextmanager
def away(api: Api) -> Iterator[None]:
    """Take the database of a running service away, and bring it back."""
    if api.settings.database.startswith("sqlite"):
        file = api.settings.home / "distillery.db"
        api.database.engine.dispose()
        file.rename(file.with_name("away"))
        file.mkdir()
        yield
        file.rmdir()
        file.with_name("away").rename(file)
        return
    name = api.settings.database.rsplit("/", 1)[1]
    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        yield
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def test_without_a_broker_a_job_is_accepted_at_once(tmp_path, servers):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, never listening: connections are refused
        url = SecretStr(f"redis://127.0.0.1:{nobody.getsockname()[1]}/0")
        with serving(embedded(tmp_path, broker_url=url, min_free_bytes=0)) as api, api.client() as client:
            begun = time.monotonic()
            job = submit(client)
            assert client.get(f"/jobs/{job['id']}").json()["status"] == "queued"
            assert time.monotonic() - begun < 5
            assert ["broker"] in [error["loc"] for error in client.get("/readyz").json()["errors"]]


def test_a_queued_job_rings_the_doorbell(settings: Settings):
    with serving(settings) as api, api.client() as client:
        before = api.service.doorbell.waiting("auto")
        job_id = submit(client)["id"]
        eventually(lambda: api.service.doorbell.waiting("auto") == before + 1)
        client.post(f"/jobs/{job_id}/pause")
        client.post(f"/jobs/{job_id}/resume")
        eventually(lambda: api.service.doorbell.waiting("auto") == before + 2)


def test_the_api_takes_back_lost_jobs_and_sweeps(tmp_path):
    settings = embedded(
        tmp_path, min_free_bytes=0, reconcile_seconds=0.1, sweep_seconds=0.1, sweep_grace_seconds=0,
        lease_seconds=0.6, heartbeat_seconds=0.1,
    )  # fmt: skip
    orphan = tmp_path / "jobs" / "job_gone"
    orphan.mkdir(parents=True)
    with serving(settings) as api, api.client() as client:
        job_id = submit(client)["id"]
        fence = api.claim(job_id)
        with api.database.write() as session:
            session.execute(text("UPDATE jobs SET lease_expires_at = 0"))
        eventually(lambda: client.get(f"/jobs/{job_id}").json()["status"] == "queued")
        assert fence.attempt == 1
        eventually(lambda: not orphan.exists())


def test_housekeeping_survives_its_failures_and_stops():
    calls = []

    def work() -> None:
        calls.append(1)
        raise RuntimeError("away")

    with structlog.testing.capture_logs() as lines:
        thread = housekeeping.Periodic("work", 0.01, work)
        thread.start()
        eventually(lambda: len(calls) >= 3)
        housekeeping.stop([thread])
    assert not thread.is_alive()
    assert len(lines) == 1


def test_another_versions_schema_is_refused_plainly(settings: Settings, database: Database):
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        with schema_at(database, "from_the_future"), pytest.raises(SchemaError, match="from_the_future"):
            serve(settings)
    finally:
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
        structlog.reset_defaults()
