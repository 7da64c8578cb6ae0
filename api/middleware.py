"""Around every request: its id, its log line, its count, safe headers, and a 500 that says nothing."""

import asyncio
import ipaddress
import re
import time
from functools import lru_cache
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import telemetry
from api.problems import CLIENT_GONE, ForbiddenError, internal_problem, problem, stopping_problem
from storage.ids import new_id
from storage.settings import LOOPBACK, Settings

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics"})

log = structlog.get_logger("api.access")


class RequestMiddleware:
    """The outermost layer of ours: nothing that a route raises leaves it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        scope["request_id"] = given if REQUEST_ID.fullmatch(given) else new_id("req")
        with structlog.contextvars.bound_contextvars(request_id=scope["request_id"]):
            await self._observed(scope, receive, send)

    async def _observed(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        status: int | None = None
        told = False

        def tell() -> None:
            nonlocal told
            if not told:
                told = True
                seconds = time.perf_counter() - begun
                telemetry.observe(scope["method"], _route(scope), status or CLIENT_GONE, seconds)
                _log(scope, status or CLIENT_GONE, seconds)

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(raw=message["headers"]), scope["request_id"])
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                tell()  # now: what runs in the background afterwards is not the client's time

        try:
            await self._answer(scope, receive, send_observed)
        except Exception:
            log.exception("request failed", method=scope["method"], route=_route(scope))
            if status is not None:
                raise  # half an answer is out: only closing the connection tells
            await internal_problem(Request(scope))(scope, receive, send_observed)
        except asyncio.CancelledError:  # the server stops, and what it waited for is not there yet
            if status is not None:
                raise
            await stopping_problem(Request(scope))(scope, receive, send_observed)
        finally:
            tell()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None if self._settings.api_keys else _foreign_page(scope, self._settings)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            answer = problem(Request(scope), ForbiddenError.status, ForbiddenError.code, refusal)
            await answer(scope, receive, send)


def _foreign_page(scope: Scope, settings: Settings) -> str | None:
    """Why a request must come from a web page that is not ours; without keys nothing else keeps it out."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if host and not _is_ours(host, settings):
        return "without API keys this service answers to localhost, 127.0.0.1, [::1] and its allowed_hosts only"
    origin = headers.get("origin")
    if origin is not None and scope["method"] not in SAFE_METHODS and urlsplit(origin).netloc.lower() != host.lower():
        return "without API keys this service takes no requests from web pages of another origin"
    return None


def _is_ours(host: str, settings: Settings) -> bool:
    allowed = settings.allowed_hosts
    if allowed is None and settings.host not in LOOPBACK:
        return True
    name, is_loopback = _read_host(host)
    return is_loopback or name in (allowed or ())


@lru_cache(maxsize=64)
def _read_host(host: str) -> tuple[str | None, bool]:
    """The name in a `Host` header, None where it is malformed, and whether it is this machine's loopback."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return None, False
    try:
        return name, name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name, False


def _add_headers(headers: MutableHeaders, request_id: str) -> None:
    headers["X-Request-ID"] = request_id
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "no-referrer"
    headers.setdefault("Cache-Control", "private, no-cache")


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", None) or "unmatched"


def _log(scope: Scope, status: int, seconds: float) -> None:
    route = _route(scope)
    write = log.debug if route in QUIET_ROUTES else log.info
    job = scope.get("path_params", {}).get("job_id")
    ids = {"job_id": job} if job is not None else {}
    write("request", method=scope["method"], route=route, status=status, ms=round(seconds * 1e3, 1), **ids)
