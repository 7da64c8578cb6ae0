"""`make demo` when it fails: it says why, and ends what it started. tests/e2e/test_serve.py runs it as a whole."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from distillery import demo
from distillery.home import ServeError
from tests.distillery.conftest import KEY, Api

NOISE = "what the service printed\n"


class Standing:
    """In the place of `Embedded`: a service that runs already, or one that does not start."""

    def __init__(self, url: str | None) -> None:
        self.url, self.stopped = url, 0

    def __call__(self, settings: Any, output: IO[bytes]) -> "Standing":
        output.write(NOISE.encode())
        return self

    def start(self) -> None:
        if self.url is None:
            raise ServeError("the service was not ready")

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture(autouse=True)
def _keep_handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_spec_that_is_refused_is_the_users_and_the_services_log_is_not_shown(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, service = tmp_path / "job.yaml", Standing(api.url)
    job.write_text("data: {type: digits}\nteachers: [{model: {type: mlp}}]\nstudent: {model: {type: nlp}}\n")
    monkeypatch.setattr(demo, "Embedded", service)
    monkeypatch.setenv("DISTILLERY_API_KEY", KEY)
    assert demo.main([str(job)]) == 1
    said = capsys.readouterr().err
    assert "student.model.type" in said
    assert NOISE not in said
    assert service.stopped == 1


def test_a_service_that_does_not_start_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, service = tmp_path / "job.yaml", Standing(None)
    job.write_text("data: {type: digits}\n")
    monkeypatch.setattr(demo, "Embedded", service)
    assert demo.main([str(job)]) == 1
    said = capsys.readouterr().err
    assert "the demo failed: the service was not ready" in said
    assert NOISE in said
    assert service.stopped == 1


def test_without_a_spec_nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "Embedded", None)
    assert demo.main([str(tmp_path / "none.yaml")]) == 1
