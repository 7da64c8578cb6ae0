"""Deaths at the moments that matter: between two things that belong together."""

from storage.lifecycle import TERMINAL
from tests.faults.fault import BOTH, Fault, Inject, add, fault
from tests.faults.scene import AT_ONCE, Injection, Scene

GROUP = "moments"


AT_THE_END = ("upload.write", "upload.name", "publish", "succeed", "published")
"""Moments that a job passes once, at its end."""


def _at(moment: str, action: str, role: str | None) -> Inject:
    def inject(scene: Scene) -> Injection | None:
        cause = scene.bring_an_end if moment in AT_THE_END else lambda: None
        return scene.sprung(scene.spring(moment, action, role=role, cause=cause))

    return inject


for name, moment, action, role in (
    ("killed inside a checkpoint's write", "checkpoint.write", "kill", None),
    ("killed between a checkpoint's bytes and its name", "checkpoint.name", "kill", None),
    ("killed between checkpoint and row", "checkpoint.row", "kill", None),
    ("killed inside an artifact's upload", "upload.write", "kill", None),
    ("killed between an artifact's bytes and its name", "upload.name", "kill", None),
    ("killed between upload and publish", "publish", "kill", None),
    ("killed inside the transaction that publishes", "succeed", "kill", None),
    ("killed after publishing, before it could say so", "published", "kill", None),
    ("killed while it looks for a checkpoint", "resume", "kill", None),
    ("API killed inside a submission's transaction", "submit", "kill", None),
    ("API killed between commit and doorbell", "ring", "kill", "api"),
    ("supervisor killed inside a claim's transaction", "claim", "kill", None),
    ("supervisor killed between claim and start", "claimed", "kill", None),
    ("worker killed between claim and start", "claimed", "kill_worker", None),
    ("sweep killed", "sweep", "kill", None),
):
    add(Fault(name, GROUP, BOTH, _at(moment, action, role)))


def _while_asking(action: str, prepare: str | None) -> Inject:
    """Somebody asks, and the API dies before its transaction ends."""

    def inject(scene: Scene) -> Injection | None:
        with scene.client() as client, scene.expecting(f"action.{action}", "kill") as sprung:
            entry = client.submit("short")
            if prepare is not None:
                client.act(entry, prepare)
                client.until(entry, lambda job: job["status"] in ("paused", *TERMINAL))
            if action == "delete":
                client.until_over(entry)
                client.delete(entry)
                return scene.sprung(sprung())
            client.act(entry, action)
            if action == "pause":
                client.until(entry, lambda job: job["status"] in ("paused", *TERMINAL))
                client.act(entry, "resume")
            if action == "retry":
                client.until(entry, lambda job: job["status"] != "cancelled")
            client.until_over(entry)
            return scene.sprung(sprung())

    return inject


for asked, prepare in (
    ("cancel", None),
    ("pause", None),
    ("resume", "pause"),
    ("retry", "cancel"),
    ("delete", "cancel"),
):
    add(Fault(f"API killed inside {asked}", GROUP, BOTH, _while_asking(asked, prepare)))


@fault("training killed while it pauses", GROUP)
def killed_while_pausing(scene: Scene) -> Injection | None:
    with scene.client() as client:
        entry = client.submit("short", changes=AT_ONCE)

        def ask() -> None:
            client.until(entry, lambda job: job["status"] in ("running", *TERMINAL))
            client.act(entry, "pause")

        note = scene.spring("yield", "kill", role="training", job=entry.job_id, cause=ask)
        client.until(entry, lambda job: job["status"] in ("paused", *TERMINAL))
        client.act(entry, "resume")
    return scene.sprung(note)
