"""Requests that are sent again when that is safe, a bounded number of times."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from distillery.errors import ApiError, ConnectionFailed

TRIES = 5
LONGEST_PAUSE = 30.0
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
Sleep = Callable[[float], None]


class Sender:
    """An HTTP connection to the service.

    A request is sent again when nothing can have happened (no connection, 503), and, where it is safe
    (`again=True`), also when the answer was lost. `Retry-After` is honoured up to 30 seconds.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        transport: httpx.BaseTransport | None = None,
        timeout: float = 30.0,
        sleep: Sleep = time.sleep,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.base_url = base_url.rstrip("/")
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=headers | {"Accept": "application/json"},
            transport=transport,
            timeout=httpx.Timeout(timeout, connect=5.0),
            trust_env=urlsplit(base_url).hostname not in LOOPBACK,  # a proxy cannot know this machine's loopback
        )

    def close(self) -> None:
        self._http.close()

    def send(self, method: str, path: str, *, again: bool, **options: Any) -> httpx.Response:
        """The answer, read whole.

        Raises:
            ApiError: the service refused.
            ConnectionFailed: no answer came, however often it was tried.
        """
        for tried in range(1, TRIES + 1):
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                may = again or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if not may or tried == TRIES:
                    raise self.failed(error) from error
                self.pause(tried)
                continue
            if response.status_code != 503 or tried == TRIES:
                return checked(response)
            self.pause(tried, response)
        raise AssertionError("unreachable")

    @contextmanager
    def stream(self, path: str, headers: dict[str, str], timeout: float) -> Iterator[httpx.Response]:
        """One GET whose body the caller reads; never sent again here.

        Raises:
            ApiError: the service refused.
        """
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
            yield checked(response)

    def pause(self, tried: int, response: httpx.Response | None = None) -> None:
        """Wait before the next try: as long as the service asked, else a little longer each time."""
        asked = response.headers.get("Retry-After", "") if response is not None else ""
        seconds = float(asked) if asked.isdigit() else 0.2 * 2 ** (tried - 1) * random.uniform(0.75, 1.25)
        self._sleep(min(seconds, LONGEST_PAUSE))

    def failed(self, error: Exception) -> ConnectionFailed:
        return ConnectionFailed(f"no answer from {self.base_url}: {str(error) or type(error).__name__}")


def checked(response: httpx.Response) -> httpx.Response:
    """The response, if it is a success; its body must have been read otherwise.

    Raises:
        ApiError: made of the problem document, or of what came instead of one.
    """
    if not response.is_error:
        return response
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    raise ApiError(
        response.status_code,
        str(problem.get("code", "unexpected_answer")),
        str(problem.get("detail") or problem.get("title") or response.reason_phrase),
        problem.get("errors") or (),
        problem.get("request_id"),
    )
