"""When a request is sent again, and what is made of an answer."""

from collections.abc import Callable

import httpx
import pytest

from distillery.errors import ApiError, ConnectionFailed
from distillery.sending import TRIES, Sender

Answer = httpx.Response | type[httpx.TransportError]


def sender(*answers: Answer) -> tuple[Sender, list[httpx.Request], list[float]]:
    """A sender that gets these answers in turn, what it sent, and how long it paused."""
    left, sent, slept = list(answers), [], []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        found = left.pop(0)
        if isinstance(found, httpx.Response):
            return found
        raise found("broken", request=request)

    return Sender("http://service", None, transport=httpx.MockTransport(answer), sleep=slept.append), sent, slept


def busy(after: str) -> httpx.Response:
    return httpx.Response(503, headers={"Retry-After": after}, json={"code": "queue_full", "detail": "full"})


def test_a_lost_answer_is_asked_for_again_where_that_is_safe() -> None:
    sending, sent, slept = sender(httpx.ReadError, httpx.RemoteProtocolError, httpx.Response(200))
    assert sending.send("GET", "/jobs", again=True).status_code == 200
    assert len(sent) == 3
    assert 0 < slept[0] < slept[1] < 1


def test_a_lost_answer_is_an_error_where_asking_again_might_do_harm() -> None:
    sending, sent, _ = sender(httpx.ReadError, httpx.Response(200))
    with pytest.raises(ConnectionFailed, match="http://service"):
        sending.send("POST", "/jobs/x/resume", again=False)
    assert len(sent) == 1


@pytest.mark.parametrize("first", [lambda: httpx.ConnectError, lambda: busy("0")])
def test_what_cannot_have_happened_is_always_tried_again(first: Callable[[], Answer]) -> None:
    sending, sent, _ = sender(first(), httpx.Response(200))
    assert sending.send("POST", "/jobs/x/resume", again=False).status_code == 200
    assert len(sent) == 2


def test_retry_after_is_honoured_up_to_a_bound() -> None:
    sending, _, slept = sender(busy("7"), busy("86400"), httpx.Response(200))
    sending.send("GET", "/jobs", again=True)
    assert slept == [7.0, 30.0]


def test_trying_ends() -> None:
    sending, sent, _ = sender(*[httpx.ConnectError] * (TRIES + 1))
    with pytest.raises(ConnectionFailed):
        sending.send("GET", "/jobs", again=True)
    assert len(sent) == TRIES
    sending, sent, _ = sender(*[busy("0") for _ in range(TRIES + 1)])
    with pytest.raises(ApiError) as caught:
        sending.send("GET", "/jobs", again=True)
    assert (len(sent), caught.value.status, caught.value.code) == (TRIES, 503, "queue_full")


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[1]", b""])
def test_an_answer_that_is_no_problem_document_is_an_api_error_too(body: bytes) -> None:
    sending, _, _ = sender(httpx.Response(502, content=body))
    with pytest.raises(ApiError, match="Bad Gateway") as caught:
        sending.send("GET", "/jobs", again=True)
    assert caught.value.status == 502


def test_the_key_is_sent_as_a_bearer_token() -> None:
    seen = []
    transport = httpx.MockTransport(
        lambda request: seen.append(request.headers["Authorization"]) or httpx.Response(200)
    )
    Sender("http://service", "sixteen-characters", transport=transport).send("GET", "/jobs", again=True)
    assert seen == ["Bearer sixteen-characters"]
