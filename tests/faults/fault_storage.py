"""Disks and files: full, forbidden, slow, damaged, gone."""

import contextlib
import errno
import signal
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text

from tests.faults.fault import BOTH, Fault, Inject, add, fault
from tests.faults.scene import SPRING_SECONDS, Injection, Scene, Victim, send

GROUP = "storage"
CHECKPOINT = ("checkpoint.fsync", "checkpoint.name")
UPLOAD = ("upload.write", "upload.name")


def _writing(moments: tuple[str, ...], action: str, argument: float) -> Inject:
    """Everybody who writes such a file meets it, for a second or two."""

    def inject(scene: Scene) -> Injection | None:
        since = time.time()
        with scene.lasting(dict.fromkeys(moments, (action, argument))) as anybody:
            if not scene.wait_for(anybody, SPRING_SECONDS):
                return None
            time.sleep(scene.rng.uniform(0.2, 1.5))
        return scene.done(since=since)

    return inject


for name, moments, action, argument in (
    ("disk full for checkpoints", CHECKPOINT, "error", errno.ENOSPC),
    ("disk full for artifacts", UPLOAD, "error", errno.ENOSPC),
    ("checkpoints may not be written", CHECKPOINT, "error", errno.EACCES),
    ("artifacts may not be written", UPLOAD, "error", errno.EACCES),
    ("input/output error", (*CHECKPOINT, *UPLOAD), "error", errno.EIO),
    ("slow disk", ("checkpoint.fsync", "upload.write"), "slow", 0.4),
):
    add(Fault(name, GROUP, BOTH, _writing(moments, action, argument)))


NEWEST = text("SELECT path FROM checkpoints WHERE job_id = :job ORDER BY id DESC LIMIT 1")


def _damaged(damage: Callable[[Path], None]) -> Inject:
    """The newest checkpoint of a running job is damaged, and training dies."""

    def inject(scene: Scene) -> Injection | None:
        for _ in range(5):
            with scene.victim(saved=True) as victim:
                if victim is None:
                    return None
                if _damage_newest(scene, victim, damage):
                    return scene.done(victim)
            time.sleep(0.3)
        return None

    return inject


def _damage_newest(scene: Scene, victim: Victim, damage: Callable[[Path], None]) -> bool:
    if not send(victim.tree.training, signal.SIGSTOP):
        return False
    try:  # it writes no newer one meanwhile
        for row in scene.rows(NEWEST, job=victim.job):
            with contextlib.suppress(FileNotFoundError):
                path = scene.settings.home / row.path
                damage(path)
                if not path.exists():
                    scene.did.removed.add(path)
                send(victim.tree.training, signal.SIGKILL)
                return True
    finally:
        send(victim.tree.training, signal.SIGCONT)
    return False


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0b100
    path.write_bytes(content)


for name, damage in (
    ("checkpoint truncated", _truncate),
    ("a bit of a checkpoint flipped", _flip),
    ("checkpoint's file gone", Path.unlink),
):
    add(Fault(name, GROUP, BOTH, _damaged(damage)))


@fault("read error on resume", GROUP)
def read_error(scene: Scene) -> Injection | None:
    """The disk fails once, while a whole checkpoint is read: a later attempt goes on from that very one."""
    with scene.victim(saved=True) as victim:
        if victim is None:
            return None
        note = scene.spring(
            "checkpoint.read", "error", errno.EIO, role="training", job=victim.job,
            cause=lambda: send(victim.tree.training, signal.SIGKILL),
        )  # fmt: skip
    if note is not None:
        scene.did.unread.append((note["job"], note["attempt"]))
    return scene.sprung(note)


ARTIFACT = text("""
    SELECT artifacts.job_id AS job, artifacts.name AS name, artifacts.digest AS digest FROM artifacts
    WHERE artifacts.name = 'model.json' ORDER BY artifacts.created_at LIMIT 20
""")


@fault("an artifact's file gone", GROUP)
def artifact_gone(scene: Scene) -> Injection | None:
    """Until somebody brings it back, whoever asks for it is told so, and gets no half of it."""
    for row in scene.rows(ARTIFACT):
        name = row.digest.removeprefix("sha256:")
        path, aside = scene.settings.blobs / name[:2] / name, scene.folder / name
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            since = time.time()
            try:
                _ask_for(scene, row.job, row.name)
            finally:
                aside.rename(path)
            return scene.done(since=since)
    return None


def _ask_for(scene: Scene, job: str, name: str) -> None:
    with scene.client() as client, contextlib.suppress(Exception):
        answer = client.http.get(f"{scene.rng.choice(client.urls)}/jobs/{job}/artifacts/{name}")
        # The job may be deleted meanwhile, or another one may have put the same bytes again.
        if answer.status_code not in (200, 404, 503) and answer.json().get("code") != "artifact_damaged":
            scene.ledger.blame(f"an artifact whose file is gone: {answer.status_code} {answer.text[:200]}")
