"""A round: a service, customers, faults at random moments, healing, and the check."""

import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import text

from storage import schema
from storage.database import Database
from storage.lifecycle import TERMINAL
from storage.settings import Settings
from tests.faults import fault_moments, fault_people, fault_processes, fault_servers, fault_storage
from tests.faults.client import GIVE_UP_SECONDS, Customer, Entry, GaveUpError, Ledger, Patience
from tests.faults.fault import FAULTS, Fault
from tests.faults.invariants import Checker
from tests.faults.jobs import Undisturbed
from tests.faults.proxy import Proxy
from tests.faults.scene import Injection, Scene
from tests.faults.servers import Postgres, Redis
from tests.faults.service import Service

KINDS = (fault_processes, fault_moments, fault_servers, fault_storage, fault_people)
"""Imported so that their faults are in the list."""


@dataclass(frozen=True)
class Pressure:
    """How hard a round presses.

    Args:
        lanes: how many faults may happen at once.
        customers: how many users there are at once.
        pause: between two faults of a lane, at random, from and to so many seconds.
        warm_spare: whether the workers keep one.
        stories: of the customers, see there.
    """

    lanes: int
    customers: int
    pause: tuple[float, float] = (0.0, 0.6)
    warm_spare: bool = False
    stories: tuple[str, ...] = Customer.STORIES


STORM = {"deployed": Pressure(6, 7), "embedded": Pressure(6, 4)}
CALM = Pressure(1, 1, (12.0, 20.0), warm_spare=True, stories=("plain",))
"""As where a service has its machines to itself: one job at a time, and what died is back before the next fault."""
PATIENCE_SECONDS = 300.0
"""Within which every job must end once nothing is disturbed any more."""
VALUES = {
    "device": "cpu", "lease_seconds": 5.0, "heartbeat_seconds": 0.7, "stall_seconds": 30.0, "reconcile_seconds": 1.0,
    "poll_seconds": 0.2, "retry_backoff_seconds": 0.1, "retry_backoff_max_seconds": 0.5,
    "max_failures": 60, "drain_seconds": 7.0,
    "sweep_seconds": 2.0, "sweep_grace_seconds": 60.0, "min_free_bytes": 0, "allow_download": False,
}  # fmt: skip


@dataclass
class Recovery:
    """One injected fault and how long it took until what it hit went on."""

    fault: str
    group: str
    seconds: float | None
    """None where nothing more was to be done after it, or its job was deleted."""


@dataclass
class Outcome:
    """What a round came to."""

    form: str
    seed: int
    recoveries: list[Recovery] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Faults for which there was no occasion."""
    jobs: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    tail: str = ""


@dataclass
class Servers:
    """What the rounds of a deployed service share; each round has a database of its own."""

    postgres: Postgres
    redis: Redis


def play(
    form: str,
    seed: int,
    faults: list[Fault],
    undisturbed: dict[str, Undisturbed],
    servers: Servers | None,
    *,
    mutation: str | None = None,
    keep: bool = False,
    patience: float = PATIENCE_SECONDS,
    pressure: Pressure | None = None,
    tell: Callable[[str], None] = print,
) -> Outcome:
    """Play one round.

    Args:
        faults: to inject, in this order.
        keep: whether the round's folder stays.
        pressure: the form's storm where left out.
    """
    outcome, pressure = Outcome(form, seed), pressure or STORM[form]
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"faults-{form}-{seed}-"))
    with ExitStack() as stack:
        if not keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        scene = _build(stack, form, seed, folder, servers, mutation, patience, pressure.warm_spare)
        _run(scene, faults, outcome, tell, pressure)
        left = scene.service.stop()
        outcome.violations += [f"did not end: {line}" for line in left]
        outcome.violations += Checker(scene.database, scene.settings, scene.ledger, undisturbed, scene.did).violations()
        outcome.jobs = len({id for entry in scene.ledger.entries for id in entry.job_ids})
        if outcome.violations:
            outcome.tail = scene.service.tail()
    outcome.seconds = time.monotonic() - began
    return outcome


def _build(
    stack: ExitStack,
    form: str,
    seed: int,
    folder: Path,
    servers: Servers | None,
    mutation: str | None,
    patience: float,
    warm_spare: bool,
) -> Scene:
    values = VALUES | {"home": folder / "home", "data": folder / "data", "warm_spare": warm_spare}
    proxies: dict[str, Proxy] = {}
    name = f"round_{seed}"
    direct: str | None = None
    if form == "deployed":
        assert servers is not None
        servers.postgres.create_database(name)
        stack.callback(servers.postgres.drop_database, name)
        direct = servers.postgres.url(name)
        for server in ("postgres", "redis"):
            proxies[server] = Proxy("127.0.0.1", getattr(servers, server).port)
            stack.callback(proxies[server].close)
        values["database_url"] = SecretStr(proxies["postgres"].url(direct))
        values["broker_url"] = SecretStr(proxies["redis"].url(servers.redis.url()))
        values["queue_prefix"] = f"round-{seed}"
    settings = Settings(**values)  # type: ignore[arg-type]
    database = Database(direct or settings.database)
    stack.callback(database.close)
    schema.ensure(database)
    service = Service(settings, folder / "service", mutation)
    stack.callback(service.stop, 5.0)
    return Scene(
        form, settings, service, database, Ledger(), random.Random(seed), folder / "service", Patience(patience),
        postgres=servers.postgres if servers else None, postgres_name=name, redis=servers.redis if servers else None,
        postgres_proxy=proxies.get("postgres"), redis_proxy=proxies.get("redis"),
    )  # fmt: skip


def _run(scene: Scene, faults: list[Fault], outcome: Outcome, tell: Callable[[str], None], pressure: Pressure) -> None:
    scene.service.start()
    over = threading.Event()
    customers = [Customer(number, scene.new_client(), over, pressure.stories) for number in range(pressure.customers)]
    for customer in customers:
        customer.start()
    injected = _inject(scene, faults, outcome, tell, pressure)
    scene.over.set()
    over.set()
    scene.patience.calm()
    for customer in customers:
        customer.join(scene.patience.seconds + GIVE_UP_SECONDS)
        if customer.is_alive():
            outcome.violations.append(f"{customer.name} still waits for its job")
    _let_finish(scene)
    outcome.recoveries = [_recovery(scene, fault, injection) for fault, injection in injected]


def _inject(
    scene: Scene, faults: list[Fault], outcome: Outcome, tell: Callable[[str], None], pressure: Pressure
) -> list[tuple[Fault, Injection]]:
    todo, injected = list(faults), []
    lock = threading.Lock()

    def lane(rng: random.Random) -> None:
        while True:
            with lock:
                if not todo:
                    return
                fault = todo.pop(0)
            time.sleep(rng.uniform(*pressure.pause))
            injection = _once(scene, fault)
            with lock:
                if injection is None:
                    outcome.missed.append(fault.name)
                else:
                    injected.append((fault, injection))
                    tell(f"  {len(injected):3d} {fault.name}")

    lanes = [
        threading.Thread(target=lane, args=(random.Random(scene.rng.random()),), daemon=True)
        for _ in range(pressure.lanes)
    ]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    return injected


def _once(scene: Scene, fault: Fault) -> Injection | None:
    try:
        return fault.inject(scene)
    except Exception as error:
        scene.ledger.blame(f"while {fault.name!r} was injected: {type(error).__name__}: {error}")
        return None


def _let_finish(scene: Scene) -> None:
    """Nothing is disturbed any more: paused jobs go on, and everything ends."""
    end = time.monotonic() + scene.patience.seconds
    statuses = text("SELECT id, status FROM jobs")
    while time.monotonic() < end:
        open_jobs = [row for row in scene.rows(statuses) if row.status not in TERMINAL]
        if not open_jobs:
            return
        with scene.client() as client:
            for row in open_jobs:
                if row.status == "paused":
                    try:
                        client.act(Entry("", "", {row.id}), "resume")
                    except GaveUpError as gave_up:
                        scene.ledger.blame(f"{row.id} stayed paused: {gave_up}")
        time.sleep(0.3)


WENT_ON = ("stage_started", "resumed_from_checkpoint")
ENDED = ("succeeded", "failed", "cancelled", "paused")


def _recovery(scene: Scene, fault: Fault, injection: Injection) -> Recovery:
    """Until the next attempt of the job that was hit has read its checkpoint or begun a stage, or it has ended;
    else until any job's history has gone on and a request was answered."""
    if injection.job is not None:
        later = text("SELECT at, attempt, type FROM events WHERE job_id = :job AND at > :at ORDER BY id")
        for row in scene.rows(later, job=injection.job, at=injection.at):
            if row.type in ENDED or (row.type in WENT_ON and row.attempt > (injection.attempt or 0)):
                return Recovery(fault.name, fault.group, row.at - injection.healed)
        return Recovery(fault.name, fault.group, None)
    first = text("SELECT min(at) AS at FROM events WHERE at > :at")
    events = [row.at for row in scene.rows(first, at=injection.healed) if row.at is not None]
    answers = [at for at in scene.ledger.acknowledged if at > injection.healed]
    if not events or not answers:
        return Recovery(fault.name, fault.group, None)
    return Recovery(fault.name, fault.group, max(min(events), min(answers)) - injection.healed)


def choose(form: str, count: int, rng: random.Random, bag: list[Fault]) -> list[Fault]:
    """The next faults: every fault once in random order before any comes again; the bag is what is left."""
    chosen = []
    for _ in range(count):
        if not bag:
            bag += [fault for fault in FAULTS.values() if form in fault.forms]
            rng.shuffle(bag)
        chosen.append(bag.pop())
    return chosen
