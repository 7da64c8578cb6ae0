"""What is too long, too many or oddly written is refused, and what is echoed stays what it is."""

import json
import re

import httpx
import pytest

from kdcore.config import MAX_ERRORS
from storage.lifecycle import add_event
from tests.api.conftest import SPEC, Api, said, submit

MARKUP = '<script>alert("1")</script>\u2028&amp;'


@pytest.mark.parametrize("stream", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("id", ["0" * 5_000, "1" * 60_000])
def test_a_last_event_id_of_thousands_of_digits_is_malformed(files_client: httpx.Client, id: str, stream: str):
    """Python reads no number of more than 4,300 digits."""
    job_id = submit(files_client)["id"]
    headers = {"Last-Event-ID": id, "Accept": stream}
    said(files_client.get(f"/jobs/{job_id}/events", headers=headers), 400, "malformed")


def test_a_page_of_events_refuses_a_last_event_id_that_is_none(files_client: httpx.Client):
    job_id = submit(files_client)["id"]
    said(files_client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "x"}), 400, "malformed")


@pytest.mark.parametrize(
    ("type", "status"),
    [
        ("application/json; charset*=utf-8''utf-16; charset*0*=x", 415),
        ("application/json; charset=utf-16", 415),
        ('application/json;a="b";charset = "UTF-8"', 200),
        ("APPLICATION/JSON ; q=1", 200),
        ("application/json;" + "a=b;" * 10_000, 200),
        ("application/json;" + " ;charset" * 5_000, 200),
    ],
)
def test_a_content_type_is_read_however_it_is_written(files_client: httpx.Client, type: str, status: int):
    response = files_client.post("/jobs/plan", content=json.dumps(SPEC), headers={"Content-Type": type})
    assert response.status_code == status, response.text


@pytest.mark.parametrize(
    ("path", "methods"), [("/jobs/plan", {"POST"}), ("/jobs", {"GET", "POST"}), ("/jobs/x", {"GET", "DELETE"})]
)
def test_the_methods_of_an_address_are_those_of_its_own_route(files_client: httpx.Client, path: str, methods: set[str]):
    """`/jobs/plan` also has the form of `/jobs/{job_id}`, whose methods it announced."""
    response = files_client.options(path)
    said(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == methods


def test_of_thousands_of_unknown_parameters_the_first_are_named(files_client: httpx.Client):
    response = files_client.get("/jobs?" + "&".join(f"a{number}" for number in range(9_000)))
    assert len(said(response, 422, "invalid_parameter")["errors"]) == MAX_ERRORS
    assert len(response.content) < 30_000


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/jobs?limit=" + "9" * 50_000, 422),
        ("/jobs?name=" + "%00" * 10, 422),
        ("/jobs?after=" + "a" * 50_000, 422),
        ("/jobs?" + "&".join(f"label=a:{number}" for number in range(5_000)), 422),
        ("/jobs?name=" + "x" * 50_000, 200),
        ("/jobs/" + "a" * 50_000, 404),
        ("/jobs/%ff%00", 404),
    ],
)
def test_long_and_odd_addresses_are_answered(files_client: httpx.Client, path: str, status: int):
    assert files_client.get(path).status_code == status


@pytest.mark.parametrize("name", ["X-Anything", "Authorization", "If-None-Match", "Accept", "Range", "X-Request-ID"])
def test_a_header_of_sixty_kilobytes_is_answered(files_api: Api, owner: str, name: str):
    with files_api.client(owner) as client:
        job_id = submit(client)["id"]
        response = client.get(f"/jobs/{job_id}/events", headers={name: "a," * 30_000})
    assert response.status_code == (401 if name == "Authorization" else 200)


def test_thousands_of_headers_are_answered(files_client: httpx.Client):
    assert files_client.get("/jobs", headers={f"X-{number}": "" for number in range(4_000)}).status_code == 200


@pytest.mark.parametrize("value", [10**4_000, 1e300, -(2**63)])
def test_huge_numbers_are_refused_in_their_field(files_client: httpx.Client, value: float):
    problem = said(files_client.post("/jobs/plan", json=SPEC | {"seed": value}), 422, "invalid_spec")
    assert [error["loc"] for error in problem["errors"]] == [["seed"]]
    assert len(problem["detail"]) < 500


def test_a_key_of_a_megabyte_is_refused_in_proportion(files_client: httpx.Client):
    response = files_client.post("/jobs/plan", json=SPEC | {"k" * 1_000_000: 1})
    said(response, 422, "invalid_spec")
    assert len(response.content) < 3_000_000


def test_no_event_can_be_smuggled_into_a_stream(api: Api, client: httpx.Client):
    message = f"a\n\nevent: succeeded\r\rdata: {{}}\r\nid: 99 {MARKUP}\n\n"
    job_id = submit(client)["id"]
    fence = api.claim(job_id)
    with api.database.write() as session:
        add_event(session, fence, "stage_started", {"stage": message})
    api.end(fence, "cancel")
    body = client.get(f"/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}).content
    # As a browser splits them: by LF, CR or both, and by nothing else.
    lines = re.split(rb"\r\n|\n|\r", body)
    assert [line for line in lines if line.startswith(b"event:")] == [
        b"event: submitted", b"event: claimed", b"event: stage_started", b"event: cancelled"
    ]  # fmt: skip
    assert [line for line in lines if line.startswith(b"id:")] == [b"id: 1", b"id: 2", b"id: 3", b"id: 4"]
    (told,) = [json.loads(line[5:]) for line in lines if line.startswith(b'data: {"stage"')]
    assert told["stage"] == message


def test_markup_is_never_sent_as_html(api: Api, client: httpx.Client):
    """What users name or print comes back as JSON or plain text, and no browser may guess otherwise."""
    job_id = submit(client, labels={"a": MARKUP.replace("\u2028", " ")})["id"]
    fence = api.claim(job_id)
    folder = api.settings.jobs / job_id / f"attempt-{fence.attempt}"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(MARKUP)
    api.succeed(fence, {"page.html": MARKUP.encode()})
    paths = ["", "/events", "/logs", "/artifacts", "/artifacts/page.html", f"/artifacts/{MARKUP}", "/metrics?stage=<b>"]
    for path in [f"/jobs/{job_id}{path}" for path in paths] + [f"/jobs/{MARKUP}", f"/jobs?label={MARKUP}"]:
        response = client.get(path)
        assert response.headers["content-type"].split(";")[0] in (
            "application/json", "application/problem+json", "text/plain", "application/octet-stream"
        ), path  # fmt: skip
        assert response.headers["x-content-type-options"] == "nosniff"
    assert MARKUP[:10] not in client.get("/docs").text


def test_no_header_can_be_smuggled_by_an_artifacts_name(api: Api, client: httpx.Client):
    job_id = submit(client)["id"]
    name = 'a"; x=\u00e9\u20ac<b>.txt'
    api.succeed(api.claim(job_id), {name: b"x", "b\r\nX-Evil: 1": b"x"})
    listed = {artifact["name"]: artifact["url"] for artifact in client.get(f"/jobs/{job_id}/artifacts").json()["data"]}
    response = client.get(listed[name])
    assert response.status_code == 200
    assert response.headers["content-disposition"].startswith("attachment; filename*=utf-8''a%22%3B%20x%3D%C3%A9")
    evil = client.get(listed["b\r\nX-Evil: 1"])
    said(evil, 404, "not_found")  # nothing publishes such a name
    assert "x-evil" not in evil.headers
