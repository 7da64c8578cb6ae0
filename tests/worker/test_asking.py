"""How a worker asks a teacher over HTTP, of a real small server."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest
from pydantic import SecretStr

from distillery import ApiError, Client
from kdcore.errors import TrainingError
from kdcore.models import HttpConfig
from storage.settings import Settings
from storage.teacher_urls import TeacherSecret, is_allowed
from tests.api.conftest import serving
from tests.worker.conftest import Rig
from worker import asking
from worker.asking import Asker

SECRET = "a-token-that-nobody-else-knows"


class Teacher:
    """Answers each instance with ten numbers; `says` are answers of another kind, given first.

    Attributes:
        seen: time, headers and number of instances of each request.
    """

    def __init__(self) -> None:
        self.says: list[tuple[int, bytes, dict[str, str]]] = []
        self.seen: list[tuple[float, dict[str, str], int]] = []
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["instances"]
                teacher.seen.append((time.monotonic(), dict(self.headers), len(asked)))
                status, body, headers = teacher.says.pop(0) if teacher.says else (200, teacher.answer(asked), {})
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server.server_address[1]}/v1/"
        self.url = f"{self.root}models/digits:predict"

    @staticmethod
    def answer(asked: list[Any]) -> bytes:
        rows = [[sum(row) + place for place, row in enumerate([*each[0], *each[0][:2]])] for each in asked]
        return json.dumps({"predictions": rows}).encode()


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    teacher = Teacher()
    thread = threading.Thread(target=teacher.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield teacher
    teacher.server.shutdown()
    teacher.server.server_close()
    thread.join(10)


def asker(teacher: Teacher, **settings: Any) -> Asker:
    return Asker(Settings(teacher_urls=[teacher.root], teacher_secrets={"digits": SECRET}, **settings))


def ask(asker: Asker, teacher: Teacher, polls: list[int] | None = None, **config: Any) -> Any:
    settled = {"type": "http", "url": teacher.url, "requests_per_second": 1000.0, **config}
    return asker(HttpConfig(**settled), [[[[0.5] * 8] * 8]], lambda: (polls or []).append(1))


def test_it_answers_and_hears_its_secret_and_nobody_elses(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # none of the machine's is used
    one = asker(teacher)
    assert ask(one, teacher) == [[4.0 + place for place in range(10)]]
    ask(one, teacher, secret="digits")
    authorized = [headers.get("Authorization") for _, headers, _ in teacher.seen]
    assert authorized == [None, f"Bearer {SECRET}"]
    with pytest.raises(TrainingError, match="none named 'other'") as caught:
        ask(one, teacher, secret="other")
    assert SECRET not in caught.value.message
    assert SECRET not in repr(Settings(teacher_secrets={"digits": SECRET}))


def test_no_faster_than_it_is_said_and_it_looks_up_meanwhile(teacher: Teacher) -> None:
    one, polls = asker(teacher), []
    for _ in range(3):
        ask(one, teacher, polls=polls, requests_per_second=2.0)
    times = [at for at, _, _ in teacher.seen]
    assert all(later - sooner >= 0.45 for sooner, later in pairwise(times))


def test_who_is_busy_or_away_is_asked_again(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher.says = [(503, b"busy", {}), (429, b"slowly", {"Retry-After": "1"})]
    assert len(ask(asker(teacher), teacher)) == 1
    times = [at for at, _, _ in teacher.seen]
    assert len(times) == 3
    assert times[2] - times[1] >= 0.95
    monkeypatch.setattr(asking, "TRIES", 2)
    teacher.says = [(500, b"broken", {})] * 2
    with pytest.raises(TrainingError, match="500: broken") as caught:
        ask(asker(teacher), teacher)
    assert (caught.value.code, caught.value.kind) == ("teacher_away", "system")


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ((400, b"no such model", {}), "it answered 400: no such model"),
        ((302, b"", {"Location": "http://169.254.169.254/"}), "it answered 302"),
        ((200, b"<html>", {}), "not JSON"),
        ((200, b"[" * 100_000, {}), "nested too deep"),
        ((200, b"[1, 2]", {}), "no list `predictions`"),
        ((200, b'{"predictions": "' + b"x" * 100_000 + b'"}', {}), "longer than 100,000 bytes"),
    ],
)
def test_other_answers_end_the_job(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch, says: tuple[int, bytes, dict[str, str]], message: str
) -> None:
    monkeypatch.setattr(asking, "MOST_BYTES", 100_000)
    teacher.says = [says]
    with pytest.raises(TrainingError, match=message) as caught:
        ask(asker(teacher), teacher)
    assert (caught.value.code, caught.value.kind) == ("teacher_refused", "user")
    assert len(teacher.seen) == 1


@pytest.mark.parametrize("pause", ["\u00b2", "\u0663", "-1", "soon", "0"])
def test_a_pause_that_is_no_number_is_none(teacher: Teacher, pause: str) -> None:
    teacher.says = [(503, b"busy", {"Retry-After": pause.encode().decode("latin-1")})]
    assert len(ask(asker(teacher), teacher)) == 1
    assert len(teacher.seen) == 2


def test_an_address_that_no_client_can_ask(teacher: Teacher) -> None:
    address = "http://1.2.3.999/v1/"
    with pytest.raises(TrainingError, match="its address cannot be asked") as caught:
        ask(Asker(Settings(teacher_urls=[address])), teacher, url=address)
    assert (caught.value.code, caught.value.kind) == ("teacher_refused", "user")


ALLOWED = ["http://models/v1/", "https://other:8443/only"]


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("http://models/v1/models/a:predict", True),
        ("http://models/v1/a?version=2", True),
        ("https://other:8443/only", True),
        ("https://other:8443/only/more", False),
        ("https://other/only", False),
        ("https://models/v1/a", False),
        ("http://models:81/v1/a", False),
        ("http://models/v2/a", False),
        ("http://models/v1", False),
        ("http://models/v1/../admin", False),
        ("http://models/v1/%2e%2e/admin", False),
        ("http://models/v1//evil", False),
        ("http://models@evil/v1/a", False),
        ("http://models/v1/a#b", False),
        ("http://evil/http://models/v1/", False),
        ("http://models.evil/v1/a", False),
        ("http://models\\@evil/v1/a", False),
        ("http://[::1/v1/", False),
        ("file:///etc/passwd", False),
        ("", False),
    ],
)
def test_only_what_the_operator_allows(url: str, is_one: bool) -> None:
    assert is_allowed(url, ALLOWED) == is_one
    assert not is_allowed(url, [])


def test_an_address_that_is_not_allowed_is_never_asked(teacher: Teacher) -> None:
    with pytest.raises(TrainingError, match="not allowed by the setting teacher_urls"):
        ask(Asker(Settings()), teacher)
    assert teacher.seen == []


def test_what_repeats_the_secret_is_quoted_without_it(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TRIES", 1)
    for status in (403, 500):
        teacher.says = [(status, b"x" * 190 + SECRET.encode() + b" is not known here", {})]
        with pytest.raises(TrainingError, match="xx<secret> ") as caught:
            ask(asker(teacher), teacher, secret="digits")
        assert SECRET[:4] not in caught.value.message


def test_a_secret_is_sent_to_its_own_address_only(teacher: Teacher) -> None:
    def secret(url: str) -> Asker:
        bound: Any = {"digits": {"token": SECRET, "url": url}}
        return Asker(Settings(teacher_urls=[teacher.root], teacher_secrets=bound))

    with pytest.raises(TrainingError, match="'digits' is not for this address"):
        ask(secret("https://models.internal/v1/"), teacher, secret="digits")
    assert teacher.seen == []
    ask(secret(teacher.root), teacher, secret="digits")
    assert teacher.seen[0][1]["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("given", ["", "two words", "caf\u00e9", {"token": "t", "url": "models"}, {"url": "http://a/"}])
def test_a_secret_that_is_none_is_not_repeated(given: Any) -> None:
    with pytest.raises(ValueError, match="teacher_secrets") as caught:
        Settings(teacher_secrets={"digits": given})
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize("url", ["models/v1/", "http://models", "ftp://a/", "http://a@b/", "http://a:99999/"])
def test_a_setting_that_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        Settings(teacher_urls=[url])


@pytest.mark.timeout(600)
def test_a_job_learns_from_it(rig: Rig, teacher: Teacher) -> None:
    elsewhere = TeacherSecret(token=SecretStr(SECRET), url="https://models.internal/v1/")
    rig.settings = rig.settings.model_copy(
        update={
            "min_free_bytes": 0,
            "poll_seconds": 0.05,
            "teacher_urls": [teacher.root],
            "teacher_secrets": {"elsewhere": elsewhere},
        }
    )
    model = {"type": "http", "url": teacher.url, "batch": 256, "requests_per_second": 100.0}
    document: dict[str, Any] = {
        "data": {"type": "digits"},
        "teachers": [{"model": model}],
        "student": {"model": {"type": "mlp", "hidden": [4]}},
        "stages": [{"epochs": 1}],
        "baseline": False,
    }
    with serving(rig.settings) as api, Client(api.url) as client:
        rig.start()
        for field, value in (("url", "http://127.0.0.1:1/v1/"), ("secret", "digits"), ("secret", "elsewhere")):
            with pytest.raises(ApiError) as refused:
                client.submit(document | {"teachers": [{"model": model | {field: value}}]})
            assert [error["loc"] for error in refused.value.errors] == [["teachers", 0, "model", field]]
        jobs = [client.submit(document | {"seed": seed})["id"] for seed in (0, 1)]
        for job in jobs:
            ended = client.wait(job, 300.0)
            assert ended["status"] == "succeeded", ended["error"]
            assert ended["result"]["teacher"]["parameters"] is None
    assert sum(count for _, _, count in teacher.seen) == 1797  # the second job asked nothing
