"""Clocks that are wrong, and people who do everything at once."""

import contextlib
import signal
import threading
import time

import httpx

from storage.lifecycle import TERMINAL
from storage.queue import Doorbell
from storage.reconciler import reconcile
from tests.faults.fault import fault
from tests.faults.scene import AT_ONCE, Injection, Scene

GROUP = "time and people"


@fault("a worker whose clock is an hour off", GROUP)
def clock_off(scene: Scene) -> Injection | None:
    """It stays so until the round is over.

    Embedded it is the whole service's, and ahead only: ids begin with the time, and jobs of one priority are taken in
    their order, so that those from before a step back wait until all that came after it are done.
    """
    name = scene.rng.choice([name for name in scene.service.members if not name.startswith("api")])
    member = scene.service.members[name]
    if member.pid is None:
        return None
    hours = ("3600", "-3600") if scene.form == "deployed" else ("3600",)
    member.variables["FAULTS_CLOCK"] = scene.rng.choice(hours)
    member.process.send_signal(signal.SIGTERM)
    return scene.done()


@fault("two reconcilers at once", GROUP)
def reconcilers(scene: Scene) -> Injection | None:
    since, end = time.time(), time.monotonic() + 2.0

    def work() -> None:
        doorbell = Doorbell(scene.settings)
        while time.monotonic() < end:
            try:
                reconcile(scene.database, doorbell, scene.settings)
            except Exception:  # the database may be down just now, as for any reconciler
                time.sleep(0.1)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return scene.done(since=since)


@fault("the same POST twenty times at once", GROUP)
def twenty_posts(scene: Scene) -> Injection | None:
    since = time.time()
    key = f"twenty-{scene.rng.getrandbits(60):x}"
    found, gate = [], threading.Barrier(20)

    def post() -> None:
        with scene.client() as client:
            gate.wait(20)
            found.append(client.submit("short", key=key))

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if len({job for entry in found for job in entry.job_ids}) != 1 or len(found) != 20:
        scene.ledger.blame(f"one key, twenty posts: {[entry.job_ids for entry in found]}")
    with scene.client() as client:
        client.until_over(found[0])
    return scene.done(since=since)


@fault("cancel races success", GROUP)
def cancel_races_success(scene: Scene) -> Injection | None:
    """It may end either way, but once, and whole."""
    with scene.client() as client:
        entry = client.submit("short", changes=AT_ONCE)
        note = scene.spring("publish", "slow", scene.rng.uniform(0, 1.5), job=entry.job_id, seconds=90.0)
        if note is None:
            client.until_over(entry)
            return None
        client.act(entry, "cancel")
        client.until_over(entry)
    return scene.done(since=note["at"])


@fault("delete races upload", GROUP)
def delete_races_upload(scene: Scene) -> Injection | None:
    """Cancelled while it uploads, and deleted as soon as that is allowed."""
    with scene.client() as client:
        entry = client.submit("short", changes=AT_ONCE)
        note = scene.spring("upload.write", "slow", 1.5, role="training", job=entry.job_id, seconds=90.0)
        if note is None:
            client.until_over(entry)
            return None
        client.act(entry, "cancel")
        client.until(entry, lambda job: job["status"] in TERMINAL)
        client.delete(entry)
    return scene.done(since=note["at"])


@fault("retry while it runs", GROUP)
def retry_while_running(scene: Scene) -> Injection | None:
    """Sent once only: sent again it could come after a cancel, and be right."""
    with scene.victim() as victim:
        if victim is None:
            return None
    with scene.client() as client, contextlib.suppress(httpx.TransportError):
        scene.ledger.asks(victim.job, "retry")
        answer = client.http.post(f"{scene.rng.choice(client.urls)}/jobs/{victim.job}/retry")
        # It may have been queued again, cancelled, or deleted, since; or its database is away.
        if answer.status_code not in (200, 404, 409, 503):
            scene.ledger.blame(f"retry of a running job: {answer.status_code} {answer.text[:200]}")
    return scene.done()


@fault("a poison job that kills its worker on every attempt", GROUP)
def poison(scene: Scene) -> Injection | None:
    """It begins so close to the limit, which the round raises for all others, that three deaths are enough."""
    since = time.time()
    with scene.client() as client:
        entry = client.submit("short", changes={"name": "poison"} | AT_ONCE)
        if not scene.bring_close_to_the_limit(entry.job_id, scene.did.poison_failures):
            scene.ledger.blame("the poison job's limit could not be set: the database was away for too long")
        job = client.until(entry, lambda job: job["status"] in TERMINAL)
        entry.status = job["status"]
    return scene.done(since=since)
