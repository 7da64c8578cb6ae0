"""A careful client: every request is sent again until it is answered, submissions with an idempotency key.

What it was told is the *ledger*, against which the database and the files are checked afterwards.
"""

import hashlib
import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from storage.lifecycle import TERMINAL
from tests.faults.jobs import SPECS

GIVE_UP_SECONDS = 90.0
DISTURBED_SECONDS = 3600.0
GRANTED = {"cancel": "cancelled", "pause": "paused"}
AGAIN = {429, 500, 502, 503, 504, 507}


class GaveUpError(Exception):
    """The service did not answer for so long that a careful client tells its user."""


@dataclass
class Entry:
    """One submission and what became of it, as the client was told."""

    key: str
    spec: str
    job_ids: set[str] = field(default_factory=set)
    """Acknowledged under this key: more than one is a violation."""
    status: str | None = None
    """The last terminal status it was shown."""
    deleting: bool = False
    deleted: bool = False
    poison: bool = False

    @property
    def job_id(self) -> str:
        return next(iter(self.job_ids))


@dataclass(frozen=True)
class Answer:
    """A `cancel`, `pause`, `resume` or `retry` that was answered with 200."""

    job: str
    action: str
    known: str | None
    """The terminal status that its user had been shown before."""


@dataclass
class Ledger:
    """Everything that was acknowledged; violations that a client sees are noted as well."""

    entries: list[Entry] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    asked: dict[str, set[str]] = field(default_factory=dict)
    """By job, what anybody asked for, whether answered or not."""
    violations: list[str] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)
    """Times of answered requests."""
    downloads: int = 0

    def open(self, spec: str, key: str | None = None) -> Entry:
        entry = Entry(key or secrets.token_hex(8), spec)
        self.entries.append(entry)
        return entry

    def asks(self, job: str, action: str) -> None:
        self.asked.setdefault(job, set()).add(action)

    def blame(self, what: str) -> None:
        self.violations.append(what)


class Patience:
    """How long is waited for a job: so many seconds from when nothing is disturbed any more.

    Until then for an hour: a job waits behind the urgent ones of the faults while its own attempts are killed.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._calm: float | None = None

    def calm(self) -> None:
        """From now on nothing is disturbed."""
        self._calm = time.monotonic()

    def over(self, began: float) -> bool:
        """Whether who waits since then gives up."""
        if self._calm is None:
            return time.monotonic() > began + DISTURBED_SECONDS
        return time.monotonic() > max(began, self._calm) + self.seconds


class Client:
    """One of several users at once; each has its own connection pool and its own chance."""

    def __init__(self, urls: list[str], ledger: Ledger, rng: random.Random, patience: Patience) -> None:
        self.urls, self.ledger, self.rng, self.patience = urls, ledger, rng, patience
        self.http = httpx.Client(timeout=httpx.Timeout(10.0, connect=2.0), trust_env=False)

    def close(self) -> None:
        self.http.close()

    def ask(self, method: str, path: str, *, give_up: float = GIVE_UP_SECONDS, **options: Any) -> httpx.Response:
        """The first answer that is one, from whichever API gives it.

        Raises:
            GaveUpError: there was none.
        """
        end = time.monotonic() + give_up
        pause, sent, last = 0.1, 0, ""
        while time.monotonic() < end:
            try:
                answer = self.http.request(method, self.rng.choice(self.urls) + path, **options)
                answer.extensions["sent"] = sent = sent + 1
                if answer.status_code not in AGAIN:
                    self.ledger.acknowledged.append(time.time())
                    return answer
                last = f"{answer.status_code} {answer.text[:300]}"
                if answer.status_code == 500 and "artifact_damaged" not in answer.text:
                    self.ledger.blame(f"{method} {path}: {last}")
            except httpx.TransportError as error:
                last, sent = repr(error), sent + 1
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
        raise GaveUpError(f"{method} {path}: no answer within {give_up:g} s, at last {last}")

    def submit(self, spec: str, *, key: str | None = None, changes: dict[str, Any] | None = None) -> Entry:
        entry = self.ledger.open(spec, key)
        entry.poison = (changes or {}).get("name", "").startswith("poison")
        body = {"name": spec} | SPECS[spec.partition(".")[0]] | (changes or {})
        answer = self.ask("POST", "/jobs", json=body, headers={"Idempotency-Key": entry.key})
        if answer.status_code != 201:
            self.ledger.blame(f"POST /jobs: {answer.status_code} {answer.text[:500]}")
            raise GaveUpError(answer.text)
        entry.job_ids.add(answer.json()["id"])
        return entry

    def look(self, entry: Entry, wait: float = 0) -> dict[str, Any]:
        answer = self.ask("GET", f"/jobs/{entry.job_id}" + (f"?wait={wait:g}" if wait else ""))
        if answer.status_code != 200:
            self.ledger.blame(f"{entry.job_id} was acknowledged and is not there: {answer.status_code}")
            raise GaveUpError(answer.text)
        job: dict[str, Any] = answer.json()
        return job

    def act(self, entry: Entry, action: str) -> httpx.Response:
        """cancel, pause, resume or retry. A conflict may be the answer to a request that had worked already."""
        job, known = entry.job_id, entry.status
        self.ledger.asks(job, action)
        answer = self.ask("POST", f"/jobs/{job}/{action}")
        if answer.status_code == 200:
            self.ledger.answers.append(Answer(job, action, known))
            self._see_granted(answer.json(), action)
        elif answer.status_code != 409:
            self.ledger.blame(f"{action} {job}: {answer.status_code} {answer.text[:300]}")
        return answer

    def _see_granted(self, job: dict[str, Any], action: str) -> None:
        """The answer shows the job a moment after: as was asked, about to be, or ended by itself meanwhile."""
        if action not in GRANTED or "retry" in self.ledger.asked[job["id"]]:
            return
        if job["status"] not in (GRANTED[action], *TERMINAL) and job["request"] not in (action, "cancel"):
            self.ledger.blame(f"{action} {job['id']} was answered with a {job['status']} job of which nothing is asked")

    def until(self, entry: Entry, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Poll until it holds.

        Raises:
            GaveUpError: it did not as long as there was patience.
        """
        began = time.monotonic()
        while True:
            job = self.look(entry, wait=2)
            if holds(job):
                return job
            if self.patience.over(began):
                raise GaveUpError(f"{entry.job_id} is still {job['status']} (attempt {job['attempt']})")
            time.sleep(0.05)

    def until_over(self, entry: Entry) -> dict[str, Any]:
        job = self.until(entry, lambda job: job["status"] in TERMINAL)
        entry.status = job["status"]
        if job["status"] == "succeeded":
            self.download(entry)
        return job

    def download(self, entry: Entry) -> None:
        """Every artifact, checked against its digest: nothing half-written is ever served."""
        listed = self.ask("GET", f"/jobs/{entry.job_id}/artifacts").json()["data"]
        for artifact in listed:
            answer = self.ask("GET", f"/jobs/{entry.job_id}/artifacts/{artifact['name']}")
            found = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
            if answer.status_code == 200 and found != artifact["digest"]:
                self.ledger.blame(f"{entry.job_id}/{artifact['name']} was served with other bytes than its digest's")
            elif answer.status_code != 200:
                self.ledger.blame(f"{entry.job_id}/{artifact['name']}: {answer.status_code} {answer.text[:200]}")
            self.ledger.downloads += 1

    def delete(self, entry: Entry) -> None:
        entry.deleting = True
        answer = self.ask("DELETE", f"/jobs/{entry.job_id}")
        if answer.status_code == 204 or (answer.status_code == 404 and answer.extensions["sent"] > 1):
            entry.deleted = True
        elif answer.status_code == 409:
            entry.deleting = False
        else:
            self.ledger.blame(f"DELETE {entry.job_id}: {answer.status_code} {answer.text[:300]}")


class Customer(threading.Thread):
    """Submits one job after the other, each with its own story, until there is no more to disturb."""

    STORIES = ("plain", "plain", "plain", "cancel", "pause", "retry", "delete", "apprentice")

    def __init__(self, number: int, client: Client, over: threading.Event, stories: tuple[str, ...] = STORIES) -> None:
        super().__init__(name=f"customer-{number}", daemon=True)
        self.client, self.over, self.stories = client, over, stories
        self.rng, self.ledger = client.rng, client.ledger

    def run(self) -> None:
        try:
            while not self.over.is_set():
                getattr(self, self.rng.choice(self.stories))(self.client.submit(self.rng.choice(list(SPECS))))
        except GaveUpError as gave_up:
            self.ledger.blame(f"{self.name} gave up: {gave_up}")
        except Exception as error:
            self.ledger.blame(f"{self.name} failed: {type(error).__name__}: {error}")
        finally:
            self.client.close()

    def pause_a_while(self, most: float = 5.0) -> None:
        self.over.wait(self.rng.uniform(0, most))

    def plain(self, entry: Entry) -> None:
        self.client.until_over(entry)

    def cancel(self, entry: Entry) -> None:
        self.pause_a_while()
        self.client.act(entry, "cancel")
        self.client.until_over(entry)

    def pause(self, entry: Entry) -> None:
        self.pause_a_while()
        self.client.act(entry, "pause")
        self.client.until(entry, lambda job: job["status"] == "paused" or job["status"] in TERMINAL)
        self.pause_a_while(1.0)
        self.client.act(entry, "resume")
        self.client.until_over(entry)

    def retry(self, entry: Entry) -> None:
        self.cancel(entry)
        if entry.status == "cancelled":
            self.client.act(entry, "retry")
            self.client.until(entry, lambda job: job["status"] != "cancelled")
        self.client.until_over(entry)

    def delete(self, entry: Entry) -> None:
        self.client.until_over(entry)
        self.client.delete(entry)

    def apprentice(self, entry: Entry) -> None:
        """Another student of the teacher that the first job trained."""
        if self.client.until_over(entry)["status"] != "succeeded":
            return
        spec = SPECS[entry.spec]
        teacher = {"model": spec["teachers"][0]["model"], "weights": {"job": entry.job_id}}
        second = self.client.submit(f"{entry.spec}.taught", changes={"teachers": [teacher]})
        self.client.until_over(second)
