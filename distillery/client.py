"""The client: a job posted, watched and its student downloaded, in a few lines."""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import httpx

from distillery.downloading import fetch
from distillery.errors import DownloadFailed, JobFailed
from distillery.events import TERMINAL, Event, follow
from distillery.sending import Sender
from distillery.uploads import Uploads

DEFAULT_URL = "http://127.0.0.1:8000"
LONGEST_WAIT = 30.0

Job: TypeAlias = dict[str, Any]
"""A job as the service shows it: `id`, `name`, `status`, `stage`, `progress`, `result`, `error`, `spec`, …"""
Spec: TypeAlias = Mapping[str, Any] | str | Path


class Client:
    """Talks to a Distillery service; a context manager, safe to share between threads.

    Args:
        base_url: of the service; `DISTILLERY_URL`, else `http://127.0.0.1:8000`, where left out.
        api_key: `DISTILLERY_API_KEY` where left out; none where the service asks for none.
        transport: an httpx transport, for tests and special networks.
        timeout: seconds to wait for each answer.

    Attributes:
        datasets, models: what was uploaded, and the way to upload more (`distillery.uploads.Uploads`).

    Every method raises `ApiError` where the service refuses and `ConnectionFailed` where it cannot be
    reached; requests are sent again, a few times, where that is safe.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
        timeout: float = 30.0,
    ) -> None:
        url = base_url or os.environ.get("DISTILLERY_URL") or DEFAULT_URL
        self._sender = Sender(
            url, api_key or os.environ.get("DISTILLERY_API_KEY"), transport=transport, timeout=timeout
        )
        self._timeout = timeout
        self.datasets = Uploads(self._sender, "/datasets", timeout)
        self.models = Uploads(self._sender, "/models", timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._sender.close()

    @property
    def base_url(self) -> str:
        return self._sender.base_url

    def submit(self, spec: Spec, idempotency_key: str | None = None) -> Job:
        """Submit a job.

        Args:
            spec: a mapping, or the path of a YAML or JSON file.
            idempotency_key: the same key and spec give the same job; a new one where left out, so that
                a submission whose answer was lost is not made twice.
        """
        key = idempotency_key or str(uuid.uuid4())
        body, type = _body(spec)
        headers = {"Idempotency-Key": key, "Content-Type": type}
        return self._job(self._sender.send("POST", "/jobs", again=True, content=body, headers=headers))

    def plan(self, spec: Spec) -> dict[str, Any]:
        """What a job would be: parameters, FLOPs, steps, memory and the complete spec; stores nothing."""
        body, type = _body(spec)
        found: dict[str, Any] = self._sender.send(
            "POST", "/jobs/plan", again=True, content=body, headers={"Content-Type": type}
        ).json()
        return found

    def get(self, job_id: str) -> Job:
        """A job as it is now."""
        return self._job(self._sender.send("GET", f"/jobs/{job_id}", again=True))

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        page_size: int = 50,
    ) -> Iterator[Job]:
        """Jobs, newest first; pages are fetched as they are needed."""
        wanted: dict[str, Any] = {"limit": page_size, "status": status, "name": name}
        wanted["label"] = [f"{key}:{value}" for key, value in (labels or {}).items()]
        query = {key: value for key, value in wanted.items() if value}
        while True:
            page = self._sender.send("GET", "/jobs", again=True, params=query).json()
            yield from page["data"]
            if not page["has_more"]:
                return
            query["after"] = page["next"]

    def wait(self, job_id: str, timeout: float | None = None, check: bool = True) -> Job:
        """The job once it has succeeded, failed or been cancelled.

        Args:
            timeout: seconds after which to give up; none: never.
            check: whether a job that did not succeed is an error.

        Raises:
            JobFailed: it did not succeed.
            TimeoutError: it has not ended in time; it goes on.
        """
        end = time.monotonic() + timeout if timeout is not None else None
        while True:
            left = LONGEST_WAIT if end is None else max(0.0, min(LONGEST_WAIT, end - time.monotonic()))
            options = {"params": {"wait": f"{left:.3f}"}, "timeout": left + self._timeout}
            job = self._job(self._sender.send("GET", f"/jobs/{job_id}", again=True, **options))
            if job["status"] in TERMINAL:
                if check and job["status"] != "succeeded":
                    raise JobFailed(job)
                return job
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"job {job_id} is still {job['status']} after {timeout:g} s")

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """The job's history as it happens, until the job has ended; reconnects where the connection broke.

        Args:
            after: id of the last event already seen.
        """
        return follow(self._sender, job_id, after)

    def cancel(self, job_id: str) -> Job:
        """End a job; a running one within a step."""
        return self._act(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Stop a job with a checkpoint, and free its worker."""
        return self._act(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on."""
        return self._act(job_id, "resume", again=False)  # a second one may find it running: a conflict

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again; it goes on from its last good checkpoint."""
        return self._act(job_id, "retry", again=False)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with all that belongs to it."""
        self._sender.send("DELETE", f"/jobs/{job_id}", again=False)

    def metrics(
        self,
        job_id: str,
        *,
        stage: str | None = None,
        name: str | None = None,
        after_step: int | None = None,
        max_points: int | None = None,
    ) -> dict[str, Any]:
        """The job's series as the service sends them, thinned to `max_points` each."""
        wanted = {"stage": stage, "name": name, "after_step": after_step, "max_points": max_points}
        query = {key: value for key, value in wanted.items() if value is not None}
        found: dict[str, Any] = self._sender.send("GET", f"/jobs/{job_id}/metrics", again=True, params=query).json()
        return found

    def logs(self, job_id: str) -> str:
        """What the training process printed, its traceback included."""
        return self._sender.send("GET", f"/jobs/{job_id}/logs", again=True, headers={"Accept": "*/*"}).text

    def artifacts(self, job_id: str) -> Sequence[dict[str, Any]]:
        """The job's files: `name`, `size` in bytes, `digest`, `media_type`."""
        found: Sequence[dict[str, Any]] = self._sender.send("GET", f"/jobs/{job_id}/artifacts", again=True).json()[
            "data"
        ]
        return found

    def download(self, job_id: str, folder: str | Path, names: Sequence[str] | None = None) -> Sequence[Path]:
        """Download artifacts into a folder: each complete and checked, or absent; what is there already stays.

        Args:
            names: which ones; none: all.

        Returns:
            The files, in the order asked for.

        Raises:
            DownloadFailed: the job has no such file, or one did not arrive whole; a new call goes on from there.
        """
        found = {str(artifact["name"]): artifact for artifact in self.artifacts(job_id)}
        wanted = list(found) if names is None else names
        missing = [name for name in wanted if name not in found]
        if missing or not found:
            there = f"; it has {', '.join(found)}" if found else " (yet)"
            raise DownloadFailed(f"job {job_id} has no {', '.join(missing) or 'artifacts'}{there}")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        return [fetch(self._sender, job_id, found[name], target) for name in wanted]

    def _act(self, job_id: str, action: str, again: bool = True) -> Job:
        return self._job(self._sender.send("POST", f"/jobs/{job_id}/{action}", again=again))

    @staticmethod
    def _job(response: httpx.Response) -> Job:
        job: Job = response.json()
        return job


def _body(spec: Spec) -> tuple[bytes, str]:
    """A spec as a request's body and its content type; YAML and JSON files go as they are."""
    if isinstance(spec, str | Path):
        path = Path(spec)
        return path.read_bytes(), "application/json" if path.suffix == ".json" else "application/yaml"
    return json.dumps(spec, allow_nan=False).encode(), "application/json"
