"""How a worker asks a teacher over HTTP: where its operator allows it, a batch at a time, no faster than said."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from kdcore.errors import TrainingError
from kdcore.models import HttpConfig
from storage.settings import Settings
from storage.teacher_urls import is_allowed

SECONDS = 60.0
"""That an answer may take."""
MOST_BYTES = 64 * 2**20
"""Of an answer."""
TRIES = 6
"""Of a request whose teacher is away or busy; the job is tried again later, and goes on behind what was answered."""
LONGEST_PAUSE = 30.0
SLICE = 0.2
"""Seconds between two looks whether the job is to stop."""


class Asker:
    """Called with a teacher, a batch of instances and a function to call while waiting.

    Raises:
        TrainingError: `teacher_refused`, kind user; `teacher_away`, kind system.
    """

    def __init__(self, settings: Settings, transport: httpx.BaseTransport | None = None) -> None:
        self._allowed, self._secrets = settings.teacher_urls, settings.teacher_secrets
        self._client = httpx.Client(timeout=SECONDS, follow_redirects=False, trust_env=False, transport=transport)
        self._next = 0.0

    def __call__(self, config: HttpConfig, instances: list[Any], poll: Callable[[], None]) -> Any:
        if not is_allowed(config.url, self._allowed):
            raise _refused(f"its address is not allowed by the setting teacher_urls: {config.url}")
        token = self._token(config)
        content = json.dumps({"instances": instances}, allow_nan=False).encode()
        pause = 0.5
        for tried in range(1, TRIES + 1):
            self._wait(self._next - time.monotonic(), poll)
            self._next = time.monotonic() + 1 / config.requests_per_second
            try:
                status, body, after = self._send(config.url, content, _headers(token))
            except httpx.InvalidURL as error:
                raise _refused(f"its address cannot be asked: {error}") from None
            except httpx.HTTPError as error:
                status, body, after = 0, str(error).encode(), None
            if status == httpx.codes.OK:
                return _predictions(body)
            if status not in (0, 408, 425, 429) and status < 500:
                raise _refused(f"it answered {status}: {_quoted(body, token)}")
            if tried < TRIES:
                self._wait(min(LONGEST_PAUSE, max(pause, after or 0.0)), poll)
                pause *= 2
        why = f"{status or 'no answer'}: {_quoted(body, token)}"
        raise TrainingError("teacher_away", f"the teacher over HTTP does not answer ({why})", "system")

    def _send(self, url: str, content: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, float | None]:
        """Status, body and the seconds of Retry-After."""
        with self._client.stream("POST", url, content=content, headers=dict(headers)) as response:
            body, began = bytearray(), time.monotonic()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise _refused(f"its answer is longer than {MOST_BYTES:,} bytes; ask with a smaller `batch`")
                if time.monotonic() - began > SECONDS:
                    raise httpx.ReadTimeout("the answer took too long")
        after = response.headers.get("retry-after", "")
        return response.status_code, bytes(body), float(after) if after.isascii() and after.isdecimal() else None

    def _token(self, config: HttpConfig) -> str | None:
        if config.secret is None:
            return None
        secret = self._secrets.get(config.secret)
        if secret is None:
            raise _refused(f"the setting teacher_secrets has none named {config.secret!r}")
        if not secret.is_for(config.url):
            raise _refused(f"by the setting teacher_secrets {config.secret!r} is not for this address: {config.url}")
        return secret.token.get_secret_value()

    @staticmethod
    def _wait(seconds: float, poll: Callable[[], None]) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            poll()
            time.sleep(min(SLICE, left))


def _headers(token: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    return headers if token is None else headers | {"Authorization": f"Bearer {token}"}


def _quoted(body: bytes, token: str | None) -> str:
    """The beginning of an answer, for the job's owner, whom the token that it may repeat is none of the business."""
    text = body.decode(errors="replace")
    return (text if token is None else text.replace(token, "<secret>"))[:200]


def _predictions(body: bytes) -> Any:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise _refused("its answer is not JSON, or nested too deep") from None
    if not isinstance(found, dict) or not isinstance(found.get("predictions"), list):
        raise _refused("its answer has no list `predictions`")
    return found["predictions"]


def _refused(why: str) -> TrainingError:
    return TrainingError("teacher_refused", f"the teacher over HTTP cannot be used: {why}")
