"""Processes that die, hang, end on request or come back from the dead."""

import signal
import time
from contextlib import ExitStack, suppress

import psutil

from tests.faults.fault import BOTH, Fault, Inject, add, fault
from tests.faults.scene import IDLE, SPRING_SECONDS, Injection, Scene, Victim, send, wake
from tests.faults.service import WorkerTree, worker_tree

GROUP = "processes"


def _signal(number: int, needs: str) -> Inject:
    def inject(scene: Scene) -> Injection | None:
        with scene.victim(needs) as victim:
            if victim is None or not send(getattr(victim.tree, needs), number):
                return None
            return scene.done(victim)

    return inject


for name, number, needs in (
    ("training killed", signal.SIGKILL, "training"),
    ("worker killed", signal.SIGKILL, "parent"),
    ("Celery's child killed", signal.SIGKILL, "child"),
    ("training terminated", signal.SIGTERM, "training"),
    ("Celery's child terminated", signal.SIGTERM, "child"),
):
    add(Fault(name, GROUP, BOTH, _signal(number, needs)))


@fault("Celery's idle child killed", GROUP)
def idle_child_killed(scene: Scene) -> Injection | None:
    """It holds what an idle child holds: the next one must get it."""

    def idle() -> WorkerTree | None:
        trees = [worker_tree(row.pid) for row in scene.rows(IDLE)]
        return next((tree for tree in trees if tree is not None and tree.child is not None), None)

    tree = scene.wait_for(idle, SPRING_SECONDS)
    return scene.done() if tree is not None and send(tree.child, signal.SIGKILL) else None


DRAINED_SECONDS = 10.0


@fault("worker drained", GROUP)
def worker_drained(scene: Scene) -> Injection | None:
    """It is gone within ten seconds, whatever it was at."""
    with scene.victim("parent") as victim:
        told = time.time()
        if victim is None or not send(victim.tree.parent, signal.SIGTERM):
            return None
        gone, _ = psutil.wait_procs([victim.tree.parent], timeout=2 * DRAINED_SECONDS)
        took = time.time() - told
        if not gone or took > DRAINED_SECONDS:
            scene.ledger.blame(f"a drained worker (of {victim.job}) was there {took:.1f} s after SIGTERM")
        scene.did.drained.append((victim.job, victim.attempt, told))
        return Injection(told, told, victim.job, victim.attempt)


def _member(prefix: str, number: int) -> Inject:
    """A signal to one of the processes that the suite's init keeps alive."""

    def inject(scene: Scene) -> Injection | None:
        names = [name for name in scene.service.members if name.startswith(prefix)]
        member = scene.service.members[scene.rng.choice(names)]
        if member.pid is None:
            return None
        member.process.send_signal(number)
        return scene.done()

    return inject


for name, form, prefix, number in (
    ("API killed", "deployed", "api", signal.SIGKILL),
    ("API terminated", "deployed", "api", signal.SIGTERM),
    ("launcher killed", "embedded", "serve", signal.SIGKILL),
    ("launcher terminated", "embedded", "serve", signal.SIGTERM),
):
    add(Fault(name, GROUP, (form,), _member(prefix, number)))


@fault("API killed under the launcher", GROUP, ("embedded",))
def embedded_api_killed(scene: Scene) -> Injection | None:
    for process in scene.service.processes():
        with suppress(psutil.Error):
            line = process.cmdline()
            if "distillery" in line and "api" in line and send(process, signal.SIGKILL):
                return scene.done()
    return None


@fault("reconciler killed", GROUP)
def reconciler_killed(scene: Scene) -> Injection | None:
    return scene.sprung(scene.spring("reconcile", "kill"))


@fault("reconciler killed while it takes a job back", GROUP)
def takeover_killed(scene: Scene) -> Injection | None:
    with scene.victim("parent") as victim:
        if victim is None:
            return None
        for process in victim.tree.all:
            send(process, signal.SIGKILL)
    note = scene.spring("takeover", "kill", seconds=scene.settings.lease_seconds + 10)
    return scene.done(victim, since=note["at"]) if note is not None else None


@fault("everything killed at once (a reboot)", GROUP)
def reboot(scene: Scene) -> Injection | None:
    """The service, its database and its broker; nothing is started again before all of it is down."""
    servers = [server for server in (scene.postgres, scene.redis) if server is not None]
    with scene.victim("parent") as victim, ExitStack() as stack:
        for server in servers:
            stack.enter_context(server.lock)
        with scene.service.down(scene.service.members):
            for server in servers:
                server.kill()
            scene.service.kill_everything()
            since = time.time()
            for server in servers:
                server.start()
    scene.service.until_ready()
    return scene.done(victim, since=since)


def _freeze(scene: Scene, victim: Victim, names: tuple[str, ...], seconds: float) -> Injection:
    processes = [process for name in names if (process := getattr(victim.tree, name)) is not None]
    since = time.time()
    for process in processes:
        send(process, signal.SIGSTOP)
    time.sleep(seconds)
    for process in processes:
        send(process, signal.SIGCONT)
    return scene.done(victim, since=since)


def _frozen(names: tuple[str, ...], beyond: float) -> Inject:
    """Stopped for so many seconds longer than the lease."""

    def inject(scene: Scene) -> Injection | None:
        with scene.victim(names[-1]) as victim:
            return _freeze(scene, victim, names, scene.settings.lease_seconds + beyond) if victim is not None else None

    return inject


add(Fault("worker frozen past its lease", GROUP, BOTH, _frozen(("parent", "training", "child"), 1.5)))
add(Fault("supervisor frozen past its lease", GROUP, BOTH, _frozen(("child",), 1.5)))


@fault("training frozen for a while", GROUP)
def frozen_training(scene: Scene) -> Injection | None:
    """Shorter than a stall: its lease is renewed meanwhile, and it goes on by itself."""
    with scene.victim("training") as victim:
        if victim is None:
            return None
        frozen = _freeze(scene, victim, ("training",), 2.0)
        return Injection(frozen.at, frozen.healed)


def _zombie(moment: str) -> Inject:
    """Training and supervisor sleep; when they wake up, another attempt may have the job, or have ended it."""

    def inject(scene: Scene) -> Injection | None:
        note = scene.spring(moment, "stop", role="training", cause=scene.bring_an_end)
        if note is None:
            return None
        time.sleep(scene.settings.lease_seconds + scene.rng.uniform(1.5, 6.0))
        wake(note)
        return scene.sprung(note)

    return inject


add(Fault("frozen past the lease between upload and publish", GROUP, BOTH, _zombie("publish")))
# On SQLite nobody else could write meanwhile: there a transaction is the whole database's.
add(Fault("frozen past the lease inside the transaction that publishes", GROUP, ("deployed",), _zombie("succeed")))


def _inside_training(action: str, argument: object = None) -> Inject:
    def inject(scene: Scene) -> Injection | None:
        return scene.sprung(scene.spring("step", action, argument))

    return inject


for name, action, argument in (
    ("segmentation fault in training", "segfault", None),
    ("os._exit in training", "exit", 7),
    ("os._exit(0) in training", "exit", 0),
    ("hang inside a step", "hang", None),
    ("hang inside a step that holds the interpreter", "hang_with_gil", None),
):
    add(Fault(name, GROUP, BOTH, _inside_training(action, argument)))


@fault("out of memory in training (rlimit)", GROUP)
def out_of_memory(scene: Scene) -> Injection | None:
    note = scene.spring("step", "out_of_memory")
    if note is not None:
        scene.did.failures[note["job"]] = "out_of_memory"
    return scene.sprung(note)
