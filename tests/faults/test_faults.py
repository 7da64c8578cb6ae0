"""A fixed part of the fault suite; `make faults` plays as many rounds as one likes."""

import os
import random
from collections.abc import Iterator

import pytest

from tests.faults.__main__ import never, reference, servers_for
from tests.faults.fault import FAULTS
from tests.faults.jobs import Undisturbed
from tests.faults.rounds import Outcome, Pressure, Recovery, Servers, choose, play
from tests.faults.servers import MissingServer
from tests.faults.table import render

GROUPS = {"processes", "moments", "broker", "database", "storage", "time and people"}

# Of each group the ones that matter most; the others come by in `make faults`.
DEPLOYED = (
    "a commit's reply lost",
    "database away during a checkpoint's row",
    "Redis killed and started empty",
    "frozen past the lease between upload and publish",
    "killed between upload and publish",
    "API killed between commit and doorbell",
    "read error on resume",
    "the same POST twenty times at once",
    "worker drained",
    "a bit of a checkpoint flipped",
    "worker frozen past its lease",
    "serialization failures",
    "everything killed at once (a reboot)",
)
EMBEDDED = (
    "training killed",
    "the broker's folder emptied",
    "killed inside an artifact's upload",
    "SQLite locked by another process for 3 s",
    "Celery's child killed",
    "garbage in the broker's folder",
)
MAY_MISS = {
    "a commit's reply lost": "nobody may write while its database is down",
    "serialization failures": "its database may be down",
    "read error on resume": "the job that it picks may be cancelled",
    "a bit of a checkpoint flipped": "no job that runs may have saved yet",
}
PATIENCE_SECONDS = 180.0


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Undisturbed]:
    return reference()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    try:
        with servers_for("deployed") as servers:
            assert servers is not None
            yield servers
    except MissingServer as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.mark.timeout(600)
def test_a_deployed_round(undisturbed: dict[str, Undisturbed], servers: Servers) -> None:
    faults = [FAULTS[name] for name in DEPLOYED]
    outcome = play("deployed", 1, faults, undisturbed, servers, pressure=Pressure(3, 3), patience=PATIENCE_SECONDS)
    see(outcome, DEPLOYED)
    assert outcome.jobs >= 4


@pytest.mark.timeout(600)
def test_an_embedded_round(undisturbed: dict[str, Undisturbed]) -> None:
    faults = [FAULTS[name] for name in EMBEDDED]
    outcome = play("embedded", 2, faults, undisturbed, None, pressure=Pressure(2, 2), patience=PATIENCE_SECONDS)
    see(outcome, EMBEDDED)


def see(outcome: Outcome, faults: tuple[str, ...]) -> None:
    """Nothing was violated, and a trap that does not attach any more is no fault that happened."""
    only = " ".join(f"--only {name!r}" for name in faults)
    replay = f"python -m tests.faults --form {outcome.form} --faults {len(faults)} {only} --keep"
    print(outcome.tail)
    assert outcome.violations == [], "\n".join([*outcome.violations, f"replay: {replay}"])
    assert set(outcome.missed) <= MAY_MISS.keys(), f"no occasion for {outcome.missed}"


def test_every_fault_has_its_turn() -> None:
    """In random order, each once before any comes again."""
    for form in ("deployed", "embedded"):
        bag: list = []
        fitting = {name for name, fault in FAULTS.items() if form in fault.forms}
        chosen = choose(form, len(fitting), random.Random(1), bag)
        assert {fault.name for fault in chosen} == fitting
        assert {fault.group for fault in chosen} == GROUPS


def test_a_fault_that_never_happens_is_told() -> None:
    rounds = [Outcome("deployed", 1, missed=["a", "b"], recoveries=[Recovery("c", "g", 1.0)]) for _ in range(3)]
    assert never(rounds) == ["a", "b"]
    assert never([*rounds, Outcome("deployed", 1, recoveries=[Recovery("a", "g", None)])]) == ["b"]
    assert never(rounds[:2]) == []


def test_the_table_counts_and_takes_medians() -> None:
    first = Outcome("deployed", 1, [Recovery("a", "g", 1.0), Recovery("a", "g", 9.0), Recovery("b", "g", None)], jobs=4)
    second = Outcome("embedded", 2, [Recovery("a", "g", 2.0)], jobs=2, violations=["lost"])
    lines = render([first, second]).splitlines()
    assert "| g | a | 2 | 5.0 | 9.0 | 1 | 2.0 | 2.0 |" in lines
    assert "| g | b | 1 | - | - |  | |  |" in lines
    assert lines[-1].startswith("embedded: 1 faults over 2 jobs in 1 rounds")
    assert lines[-1].endswith("1 violations.")
