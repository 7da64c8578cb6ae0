"""POST /jobs and /jobs/plan: what is accepted, and how everything else is refused."""

import contextlib
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import structlog
from sqlalchemy import func, select

from api import submission
from storage.tables import Job
from tests.api.conftest import SPEC, Api, eventually, said, serving, submit
from tests.conftest import embedded

YAML = """
data: {type: digits}
teachers: [{model: {type: mlp, hidden: [32]}, train: {epochs: 2, optimizer: {type: adam, lr: 1e-4}}}]
student: {model: {type: mlp, hidden: [8]}}
"""


def post(client: httpx.Client, body: bytes | str, type: str = "application/json", **headers: str) -> httpx.Response:
    return client.post("/jobs", content=body, headers={"Content-Type": type, **headers})


def test_a_job_is_accepted_shown_and_filled_in(client: httpx.Client):
    response = client.post("/jobs", json=SPEC | {"labels": {"team": "vision"}})
    job = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert job["status"] == "queued"
    assert job["name"] == "digits-mlp"
    assert job["labels"] == {"team": "vision"}
    assert job["attempt"] == 0
    for absent in ("request", "stage", "progress", "started_at", "finished_at", "result", "error", "choices"):
        assert job[absent] is None, absent
    assert job["queue"]["position"] >= 1
    assert job["created_at"].endswith("Z")
    assert job["spec"]["spec_version"] == 2
    assert job["spec"]["stages"][0]["name"] == "distill-1"
    assert job["plan"]["total_steps"] > 0
    again = client.get(response.headers["location"])
    assert again.json() == job
    assert again.headers["etag"] == response.headers["etag"]


@pytest.mark.parametrize(
    "type", ["application/yaml", "text/yaml", "application/x-yaml", "application/yaml; charset=utf-8"]
)
def test_yaml_is_a_spec_too(files_client: httpx.Client, type: str):
    response = post(files_client, YAML, type)
    assert response.status_code == 201
    assert response.json()["spec"]["teachers"][0]["train"]["optimizer"]["lr"] == 1e-4


def test_json_may_name_its_charset(files_client: httpx.Client):
    assert post(files_client, json.dumps(SPEC), "application/json; charset=UTF-8").status_code == 201


def test_a_plan_stores_nothing(client: httpx.Client):
    response = client.post("/jobs/plan", json=SPEC)
    plan = response.json()
    assert response.status_code == 200
    assert plan["student"]["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert plan["compression"]["parameters"] > 1
    assert plan["spec"]["stages"][0]["losses"]
    assert [stage["name"] for stage in plan["stages"]] == ["teacher-1", "baseline", "distill-1"]
    assert client.get("/jobs").json()["data"] == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"  ", b"{", b'{"data": NaN}', b'{"seed": Infinity}', b'{"a": 1, "a": 2}', b"\xff\xfe{}", b"[" * 100_000,
        b"1" * 10_000, b'{"a": tru}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/jobs", "/jobs/plan"])
def test_malformed_json_is_400(files_client: httpx.Client, body: bytes, path: str):
    response = files_client.post(path, content=body, headers={"Content-Type": "application/json"})
    said(response, 400, "malformed")


@pytest.mark.parametrize("body", ["a: [", "a: &x 1\nb: *x", "a: !!python/object:os.system x", "a: 1\na: 2", "\x00"])
def test_malformed_yaml_is_400(files_client: httpx.Client, body: str):
    said(post(files_client, body, "application/yaml"), 400, "malformed")


@pytest.mark.parametrize(
    "type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "nonsense",
             "application/json; charset=utf-16"]
)  # fmt: skip
def test_another_content_type_is_415(files_client: httpx.Client, type: str):
    response = post(files_client, json.dumps(SPEC), type)
    assert "application/json" in said(response, 415, "unsupported_media_type")["detail"] or "charset" in type


def test_a_missing_content_type_and_a_compressed_body_are_415(files_client: httpx.Client):
    said(files_client.post("/jobs", content=json.dumps(SPEC)), 415, "unsupported_media_type")
    said(post(files_client, b"\x1f\x8b", **{"Content-Encoding": "gzip"}), 415, "unsupported_media_type")


def test_a_body_over_the_limit_is_413(files_api: Api, files_client: httpx.Client):
    most = files_api.settings.max_body_bytes
    said(post(files_client, b" " * (most + 1)), 413, "body_too_large")
    said(post(files_client, b" " * most), 400, "malformed")
    # Without Content-Length, and with one that lies too low, only what arrives can be counted.
    chunks = (b" " * 65536 for _ in range(most // 65536 + 2))
    said(
        files_client.post("/jobs", content=chunks, headers={"Content-Type": "application/json"}), 413, "body_too_large"
    )


def test_a_huge_announcement_is_refused_before_its_body(files_api: Api, owner: str):
    key = files_api.settings.api_keys[owner].get_secret_value()
    head = (
        f"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", files_api.port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]


def test_endless_headers_are_refused(files_api: Api):
    with socket.create_connection(("127.0.0.1", files_api.port), timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"a" * 100_000)
            pytest.fail("a hundred megabytes of one header were read")


def test_a_client_that_hangs_up_while_it_sends_is_no_fault_of_ours(files_api: Api, owner: str):
    key = files_api.settings.api_keys[owner].get_secret_value()
    head = (
        f"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    )
    with structlog.testing.capture_logs() as lines:
        with socket.create_connection(("127.0.0.1", files_api.port), timeout=10) as connection:
            connection.sendall(head.encode())
        eventually(lambda: any(line.get("status") == 499 for line in lines))
    assert "request failed" not in [line["event"] for line in lines]


INVALID = {
    "unknown field": ({"studnet": {}}, ["studnet"], "student"),
    "wrong type": ({"seed": "one"}, ["seed"], "whole number"),
    "out of bounds": ({"priority": 1000}, ["priority"], "100"),
    "empty stages": ({"stages": []}, ["student", "weights"], "name the student's weights"),
    "unknown loss": ({"stages": [{"losses": [{"type": "kdd"}]}]}, ["stages", 0, "losses", 0, "type"], "'kd'"),
    "unknown model": ({"student": {"model": {"type": "mlpp"}}}, ["student", "model", "type"], "'mlp'"),
    "missing": ({"student": {}}, ["student", "model"], "missing"),
    "batch larger than the data": ({"stages": [{"batch_size": 5000}]}, ["stages", 0, "batch_size"], "training samples"),
    "a layer that is not there": (
        {"stages": [{"losses": [{"type": "logit_mse", "student_layer": "hidden_7"}]}]},
        ["stages", 0, "losses", 0, "student_layer"],
        "hidden_1",
    ),
}


@pytest.mark.parametrize("path", ["/jobs", "/jobs/plan"])
@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_spec_is_422_and_leads_to_the_field(files_client: httpx.Client, case: str, path: str):
    change, loc, words = INVALID[case]
    problem = said(files_client.post(path, json=SPEC | change), 422, "invalid_spec")
    found = {json.dumps(error["loc"]): error["message"] for error in problem["errors"]}
    assert json.dumps(loc) in found, found
    assert words in found[json.dumps(loc)]


def test_yaml_infinities_and_lists_are_422(files_client: httpx.Client):
    response = post(files_client, YAML.replace("1e-4", ".nan"), "application/yaml")
    assert said(response, 422, "invalid_spec")["errors"][0]["loc"][-1] == "lr"
    assert said(post(files_client, "[]"), 422, "invalid_spec")["errors"][0]["loc"] == []


@pytest.mark.parametrize("value", ["\\u0000", "a\\u0000b", "\\ud800"])
def test_no_character_breaks_the_store(client: httpx.Client, value: str):
    body = json.dumps(SPEC | {"labels": {"a": "VALUE"}}).replace("VALUE", value)
    said(post(client, body), 422, "invalid_spec")
    body = json.dumps(SPEC | {"VALUE": 1}).replace("VALUE", value)
    said(post(client, body), 422, "invalid_spec")


def test_the_same_key_gives_the_same_job_as_it_is_now(api: Api, client: httpx.Client):
    first = client.post("/jobs", json=SPEC, headers={"Idempotency-Key": "k-1"})
    job_id = first.json()["id"]
    client.post(f"/jobs/{job_id}/cancel")
    again = client.post("/jobs", json=SPEC | {"seed": 0}, headers={"Idempotency-Key": "k-1"})
    assert again.status_code == 201
    assert (again.json()["id"], again.json()["status"]) == (job_id, "cancelled")
    assert again.headers["location"] == first.headers["location"]
    other = client.post("/jobs", json=SPEC | {"seed": 1}, headers={"Idempotency-Key": "k-1"})
    assert job_id in said(other, 422, "idempotency_key_reused")["detail"]
    client.delete(f"/jobs/{job_id}")
    assert client.post("/jobs", json=SPEC | {"seed": 1}, headers={"Idempotency-Key": "k-1"}).status_code == 201


def test_a_key_belongs_to_its_owner(api: Api, client: httpx.Client, owners):
    with api.client(next(owners)) as stranger:
        ids = {c.post("/jobs", json=SPEC, headers={"Idempotency-Key": "k"}).json()["id"] for c in (client, stranger)}
    assert len(ids) == 2


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "caf\xe9"])
def test_a_bad_key_is_422(files_client: httpx.Client, key: str):
    headers = {"Idempotency-Key": key.encode("latin-1")}
    said(files_client.post("/jobs", json=SPEC, headers=headers), 422, "invalid_parameter")


def test_twenty_equal_posts_at_once_make_one_job(api: Api, client: httpx.Client, owner: str):
    def send(_: int) -> httpx.Response:
        return client.post("/jobs", json=SPEC, headers={"Idempotency-Key": "all-at-once"})

    with ThreadPoolExecutor(20) as pool:
        responses = list(pool.map(send, range(20)))
    assert {response.status_code for response in responses} == {201}, [r.text for r in responses]
    assert len({response.json()["id"] for response in responses}) == 1
    with api.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job).where(Job.owner == owner)) == 1


def test_a_full_queue_and_a_full_disk_refuse_but_keep_what_they_have(tmp_path):
    with serving(embedded(tmp_path, max_queued=1, min_free_bytes=0)) as api, api.client() as client:
        kept = client.post("/jobs", json=SPEC, headers={"Idempotency-Key": "k"}).json()["id"]
        response = client.post("/jobs", json=SPEC)
        said(response, 503, "queue_full")
        assert int(response.headers["retry-after"]) > 0
        assert client.post("/jobs", json=SPEC, headers={"Idempotency-Key": "k"}).json()["id"] == kept
    with serving(embedded(tmp_path, min_free_bytes=2**62)) as api, api.client() as client:
        said(client.post("/jobs", json=SPEC), 507, "insufficient_storage")
        assert client.post("/jobs", json=SPEC, headers={"Idempotency-Key": "k"}).json()["id"] == kept
        assert client.get(f"/jobs/{kept}").status_code == 200


def test_the_teacher_of_another_job(api: Api, client: httpx.Client, owners):
    def refusal(job_id: str, **changes: object) -> str:
        teacher = {"model": SPEC["teachers"][0]["model"], "weights": {"job": job_id}}
        problem = said(client.post("/jobs", json=SPEC | {"teachers": [teacher]} | changes), 422, "invalid_spec")
        assert [error["loc"] for error in problem["errors"]] == [["teachers", 0, "weights", "job"]]
        return str(problem["errors"][0]["message"])

    job_id = submit(client)["id"]
    assert "is queued" in refusal(job_id)
    fence = api.claim(job_id)
    api.succeed(fence, {"teacher-1.safetensors": b"weights"})
    teacher = {"model": SPEC["teachers"][0]["model"], "weights": {"job": job_id}}
    assert submit(client, teachers=[teacher])["spec"]["teachers"][0]["weights"] == {"job": job_id}
    assert "teacher" in said(client.delete(f"/jobs/{job_id}"), 409, "conflict")["detail"]
    assert "trained on digits" in refusal(job_id, data={"type": "mnist"})
    assert "another model" in refusal(job_id, teachers=[teacher | {"model": {"type": "mlp", "hidden": [33]}}])
    pictures = {"type": "image_folder", "folder": "mine", "classes": ["a", "b"], "size": 8}
    pictures |= {"train_pictures": 100, "test_pictures": 20}
    of_pictures = submit(client, data=pictures)["id"]
    api.succeed(api.claim(of_pictures), {"teacher-1.safetensors": b"weights"})
    assert "in another order" in refusal(of_pictures, data=pictures | {"classes": ["b", "a"]})
    assert "reads (3, 8, 8) for 2 outputs, this one (3, 16, 16)" in refusal(of_pictures, data=pictures | {"size": 16})
    words = {"type": "lstm", "hidden": 8}
    texts = {"data": {"type": "ag_news", "train_samples": 500}, "student": {"model": words}}
    of_texts = submit(client, **texts, teachers=[{"model": words}])["id"]
    api.succeed(api.claim(of_texts), {"teacher-1.safetensors": b"weights"})
    taught = {"teachers": [{"model": words, "weights": {"job": of_texts}}]}
    assert submit(client, **texts, **taught)["status"] == "queued"
    other = texts | {"data": {"type": "ag_news", "train_samples": 600}}  # as many words, others
    assert "knows the words of its own data" in refusal(of_texts, **other, **taught)
    smaller = {"view": {"type": "resize", "size": 4}}
    assert "another view" in refusal(job_id, teachers=[teacher | smaller])
    peers = [{"losses": [{"type": "mutual", "peer": SPEC["student"]["model"]}]}]
    alone = submit(client, teachers=[], stages=peers)["id"]
    api.succeed(api.claim(alone), {"student.onnx": b"x"})
    assert "had no teacher" in refusal(alone)
    with api.client(next(owners)) as stranger:
        theirs = submit(stranger)["id"]
        api.succeed(api.claim(theirs), {"teacher-1.safetensors": b"weights"})
    assert "there is no job" in refusal(theirs)
    without = submit(client)["id"]
    api.succeed(api.claim(without), {"student.onnx": b"x"})
    assert "no longer has" in refusal(without)


def test_the_student_of_another_job(api: Api, client: httpx.Client, owners):
    def refusal(job_id: str, student: dict[str, Any] | None = None, **changes: object) -> str:
        warm = SPEC["student"] | {"weights": {"job": job_id}} | (student or {})
        problem = said(client.post("/jobs", json=SPEC | {"student": warm} | changes), 422, "invalid_spec")
        assert [error["loc"] for error in problem["errors"]] == [["student", "weights", "job"]]
        return str(problem["errors"][0]["message"])

    job_id = submit(client)["id"]
    assert "is queued; only a succeeded job has a student to give" in refusal(job_id)
    api.succeed(api.claim(job_id), {"student.safetensors": b"weights"})
    warm = SPEC["student"] | {"weights": {"job": job_id}}
    assert submit(client, student=warm)["spec"]["student"]["weights"] == {"job": job_id}
    assert "student" in said(client.delete(f"/jobs/{job_id}"), 409, "conflict")["detail"]
    assert "another model" in refusal(job_id, {"model": {"type": "mlp", "hidden": [33]}})
    assert "reads (1, 8, 8) for 10 outputs, this one (1, 28, 28)" in refusal(job_id, data={"type": "mnist"})
    assert "this one (1, 4, 4)" in refusal(job_id, {"view": {"type": "resize", "size": 4}})
    with api.client(next(owners)) as stranger:
        theirs = submit(stranger)["id"]
        api.succeed(api.claim(theirs), {"student.safetensors": b"weights"})
    assert "there is no job" in refusal(theirs)
    without = submit(client)["id"]
    api.succeed(api.claim(without), {"student.onnx": b"x"})
    assert "no longer has" in refusal(without)


def test_a_student_that_is_described_is_stored_with_its_model(client: httpx.Client):
    thinner = submit(client, student={"shrink": {"width": 0.5}})["spec"]["student"]
    assert thinner["model"]["hidden"] == [width // 2 for width in SPEC["teachers"][0]["model"]["hidden"]]
    assert thinner["shrink"] == {"of": "teacher", "width": 0.5, "depth": 1.0}
    planned = client.post("/jobs/plan", json=SPEC | {"student": {"max_parameters": 1000}}).json()
    assert planned["spec"]["student"]["model"]["type"] == "mlp"
    assert "the largest with at most 1,000" in planned["student_choice"]["reason"]
    problem = said(client.post("/jobs", json=SPEC | {"student": {"max_parameters": 3}}), 422, "invalid_spec")
    assert problem["errors"][0]["loc"] == ["student", "max_parameters"]


def test_a_teacher_that_is_deleted_meanwhile_is_missed_at_once(
    api: Api, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    job_id = submit(client)["id"]
    api.succeed(api.claim(job_id), {"teacher-1.safetensors": b"weights"})
    teacher = {"model": SPEC["teachers"][0]["model"], "weights": {"job": job_id}}
    monkeypatch.setattr("api.submission.check_disk", lambda service: client.delete(f"/jobs/{job_id}"))
    said(client.post("/jobs", json=SPEC | {"teachers": [teacher]}), 422, "invalid_spec")


def test_a_key_whose_job_is_deleted_while_it_is_looked_at_is_free(
    api: Api, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    """It answered 404, to a POST."""
    key = {"Idempotency-Key": "soon-free"}
    first = client.post("/jobs", json=SPEC, headers=key).json()["id"]
    client.post(f"/jobs/{first}/cancel")
    is_spec_of = submission._is_spec_of

    def too_late(*arguments: Any) -> bool:
        assert client.delete(f"/jobs/{first}").status_code == 204
        return is_spec_of(*arguments)

    monkeypatch.setattr(submission, "_is_spec_of", too_late)
    response = client.post("/jobs", json=SPEC | {"seed": 5}, headers=key)
    assert response.status_code == 201, response.text
    assert response.json()["id"] != first
    assert response.json()["spec"]["seed"] == 5
