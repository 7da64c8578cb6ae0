"""Storage does what a model of a few lines does, also when callers come at once; on both databases.

`DISTILLERY_TEST_THOROUGH=1` looks for longer, and elsewhere each time.
"""

import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from storage.database import Database
from storage.settings import Settings
from tests.storage.model import REQUESTS, Call, Job, Model, answer, explain
from tests.storage.store import Rows, Store, check_rows, differences, look

THOROUGH = os.environ.get("DISTILLERY_TEST_THOROUGH") == "1"
ROUNDS = 5 if THOROUGH else 1
EFFORT = hypothesis.settings(
    max_examples=200 if THOROUGH else 16,
    stateful_step_count=30 if THOROUGH else 10,
    derandomize=not THOROUGH,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink) if THOROUGH else (Phase.generate,),  # making a find smaller takes minutes
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

# What arguments are chosen from, without a look at the state, which depends on threads: a job is a number, a fence a
# number and how far off it is, a key that of another job.
PICK = list(range(8))
STRANGER = [False, False, False, False, True]
FENCE = [*((number, 0) for number in PICK), (0, -1), (1, 1), (2, -1)]
POINTS = [
    [],
    [("a", "loss", 1, 0.5), ("a", "loss", 2, 1.5), ("b", "loss", 1, 2.5)],
    [("a", "loss", 3, 3.5), ("a", "loss", 1, math.nan), ("a", "loss", 3, 4.5), ("b", "loss", 2, math.inf)],
]
ARGUMENTS: dict[str, dict[str, list[Any]]] = {
    "submit": {
        "owner": ["alice", "bob"],
        "key": [None, "k1", "k2", 0, 1],
        "digest": ["sha256:one", "sha256:one", "sha256:two"],
        "device": ["auto", "auto", "cpu", "cuda"],
        "priority": [0, 1],
        "version": [1, 1, 1, 2],
        "teacher": [None, *PICK[:4]],
        "most": [None, None, None, 0, 1, 2],
    },
    "claim": {"worker": ["A", "B", "C"]},
    "heartbeat": {"fence": FENCE},
    "report": {"fence": FENCE, "points": POINTS},
    "store_choices": {"fence": FENCE, "choices": [{"device": "cpu"}, {"device": "cuda"}]},
    "record_checkpoint": {"fence": FENCE},
    "set_aside_checkpoint": {"fence": FENCE, "id": [1, 2, 3, 4]},
    "rewind": {"fence": FENCE, "done": [{}, {"a": 1}, {"a": 2, "b": 1}, {"a": None}, {"a": None, "b": 2}]},
    "succeed": {"fence": FENCE, "artifacts": [[], ["a.onnx"], ["b.json", "a.onnx"]]},
    "fail": {"fence": FENCE},
    "give_up": {"fence": FENCE, "reason": ["drain", "pause", "cancel"]},
    "release": {"fence": FENCE},
    "cancel": {"job_id": PICK, "stranger": STRANGER},
    "pause": {"job_id": PICK, "stranger": STRANGER},
    "resume": {"job_id": PICK, "stranger": STRANGER},
    "retry": {"job_id": PICK, "stranger": STRANGER},
    "remove": {"job_id": PICK, "stranger": STRANGER},
    "reconcile": {},
    "sweep": {"by": ["days", "quota"]},
    "expire_lease": {"job_id": PICK},
    "end_rest": {"job_id": PICK},
}
SLOW = ("expire_lease", "end_rest")  # what time does does not race
USUAL: dict[str, dict[str, Any]] = {
    "submit": {"digest": "sha256:one", "device": "auto", "version": 1},
    "claim": {"worker": "C"},
    "report": {"points": POINTS[1]},
    "succeed": {"artifacts": ["a.onnx"]},
}
SITUATIONS = {  # how a new job gets there
    "running": "submit claim report",
    "running again": "submit claim report record_checkpoint record_checkpoint release claim",
    "running for the last time": "submit claim release claim release end_rest claim",
    "to be paused": "submit claim pause",
    "to be cancelled": "submit claim cancel",
    "lost": "submit claim record_checkpoint expire_lease",
    "lost and to be paused": "submit claim pause expire_lease",
    "queued": "submit",
    "four queued": "submit submit submit submit",
    "two queued while one runs": "submit claim submit submit",
    "queued again": "submit claim record_checkpoint release",
    "paused": "submit pause",
    "failed": "submit claim record_checkpoint release claim fail",
    "cancelled": "submit claim record_checkpoint cancel release",
    "succeeded": "submit claim record_checkpoint succeed",
}
RACES = {  # what is known to meet, and in which situations
    "queued, four queued, paused": [
        "claim claim", "claim claim claim", "claim cancel", "claim pause", "claim resume", "claim reconcile",
        "claim submit", "pause cancel", "pause resume", "submit submit", "submit submit submit",
    ],
    "running, running for the last time, to be paused, to be cancelled": [
        "cancel succeed", "cancel pause", "cancel give_up", "cancel release", "cancel fail", "pause give_up",
        "pause release", "pause heartbeat", "release succeed", "release give_up claim", "report rewind",
        "report release claim", "record_checkpoint release claim", "sweep record_checkpoint", "sweep succeed",
        "store_choices store_choices",
    ],
    "lost, lost and to be paused": [
        "reconcile reconcile", "reconcile heartbeat", "reconcile heartbeat succeed", "reconcile reconcile heartbeat",
        "reconcile release claim", "reconcile cancel", "reconcile record_checkpoint", "reconcile give_up",
    ],
    "failed, cancelled, succeeded": [
        "retry remove", "retry claim", "retry sweep", "retry retry", "remove remove", "remove sweep", "sweep sweep",
        "submit submit", "submit remove", "submit cancel remove", "retry claim record_checkpoint sweep",
    ],
    "four queued": ["claim claim claim claim"] * 8,  # these seldom meet where it hurts
    "succeeded": ["submit sweep sweep"] * 10,
}  # fmt: skip


def calls(*names: str) -> st.SearchStrategy[Any]:
    def call(name: str) -> st.SearchStrategy[Any]:
        arguments = {argument: st.sampled_from(options) for argument, options in ARGUMENTS[name].items()}
        return st.tuples(st.just(name), st.fixed_dictionaries(arguments))

    return st.sampled_from(names).flatmap(call)


SITUATION = st.sampled_from([None] * len(SITUATIONS) + sorted(SITUATIONS))
RACE = st.lists(calls(*sorted(ARGUMENTS.keys() - SLOW)), min_size=2, max_size=4)


class Lifecycle(RuleBasedStateMachine):
    """The same calls to storage and to the model, which must agree on every answer and on every row."""

    def __init__(self, store: Store, at_once: Any) -> None:
        super().__init__()
        self.store, self.at_once, self.model = store, at_once, Model()
        self.story: list[Call] = []
        self.number = 0
        store.empty()
        self.rows: Rows = store.rows()

    @rule(situation=SITUATION, call=calls(*ARGUMENTS))
    def do(self, situation: str | None, call: Any) -> None:
        """A call while nobody else is there: refused or repeated, it changes nothing at all."""
        made = self.resolve(*call, self.put(situation))
        rows, was = self.rows, self.model.copy()
        self.say(made)
        self.compare()
        refused = isinstance(self.story[-1].saw, str) and self.story[-1].saw.endswith("Error")
        if refused or (made.name == "ask" and was.jobs == self.model.jobs):
            with self.told():
                assert self.rows == rows, "a call that was refused or repeated changed something"

    def put(self, situation: str | None) -> str:
        """The id of a new job in this situation, which all further calls are of; without one of any jobs."""
        job_id, owners, priority = "", iter(("alice", "alice", "bob", "alice")), 10 + self.number
        for name in SITUATIONS[situation].split() if situation else ():
            args = dict.fromkeys(ARGUMENTS[name]) | USUAL.get(name, {})
            if name == "submit":  # the next claim takes this job
                args |= {"owner": next(owners), "priority": priority, "key": f"key-{self.number}"}
            self.say(self.resolve(name, args, job_id))
            job_id = job_id or self.story[-1].saw
        if job_id:
            self.compare()
        return job_id

    @rule(situation=SITUATION, race=RACE, seed=st.integers(0, 99))
    def meet(self, situation: str | None, race: Any, seed: int) -> None:
        """Calls at once."""
        focus = self.put(situation)
        made = [self.resolve(name, args, focus) for name, args in race]
        with self.store.hesitating(seed):
            seen = self.at_once(len(made), lambda index: self.store.do(made[index].name, made[index].args))
        made = [call._replace(saw=saw) for call, saw in zip(made, seen, strict=True)]
        self.story += [Call("at once", {"calls": made})]
        with self.told():
            raised = [saw for saw in seen if isinstance(saw, Exception)]
            assert not raised, raised
            rows = self.store.rows()
            found = explain(self.model, made, look(rows), passes_over=self.store.passes_over)
            assert found is not None, f"no order of the calls leads to {differences(self.model.jobs, look(rows))}"
            self.model = found
            self.settle(rows)

    def say(self, call: Call) -> None:
        """A call that both answer alike."""
        self.story.append(call)
        with self.told():
            self.story[-1] = call = call._replace(saw=self.store.do(call.name, call.args))
            assert answer(self.model, call) == call.saw, "the model says else"

    def compare(self) -> None:
        with self.told():
            rows = self.store.rows()
            assert not differences(self.model.jobs, look(rows))
            self.settle(rows)

    def settle(self, rows: Rows) -> None:
        check_rows(rows, self.store.settings.home)
        check_versions(self.rows, rows)
        self.rows = rows

    @contextmanager
    def told(self) -> Iterator[None]:
        """A failure tells all that was done: threads may not meet so again."""
        try:
            yield
        except Exception as error:
            error.add_note("after\n  " + "\n  ".join(map(repr, self.story)))
            raise

    def resolve(self, name: str, drawn: dict[str, Any], focus: str = "") -> Call:
        """A call of the jobs that there are, or of `focus`."""
        args, jobs = dict(drawn), self.model.jobs
        self.number += 1
        known = sorted({*jobs, *self.model.gone}) or ["job_none"]
        if name == "submit":
            finished = sorted(job_id for job_id, job in jobs.items() if job.status == "succeeded")
            if finished and args["teacher"] is not None:
                args["teacher"] = focus if focus in finished else pick(finished, args["teacher"])
            else:
                args["teacher"] = None
            if isinstance(args["key"], int):  # of a job that there is
                job = jobs.get(focus or pick(known, args["key"]), Job("alice", "", "auto", 0, 1))
                args["owner"], args["key"] = job.owner, job.key
            args["owner"] = jobs[args["teacher"]].owner if args["teacher"] else args["owner"]
        if "fence" in args:
            number, off = args["fence"] or (0, 0)
            running = sorted(job_id for job_id, job in jobs.items() if job.status == "running")
            job_id = focus or pick(running if running and not off else known, number)
            attempt = jobs[job_id].attempt if job_id in jobs else self.model.gone.get(job_id, 0)
            args["fence"] = job_id, attempt + off
        if "job_id" in args:
            args["job_id"] = focus or pick(known, args["job_id"])
        if "stranger" in args:
            owner = jobs[args["job_id"]].owner if args["job_id"] in jobs else "alice"
            args["owner"] = "mallory" if args.pop("stranger") else owner
        if name == "record_checkpoint":
            args["name"] = "jobs/{}/attempt-{}/checkpoints/{}.pt".format(*args["fence"], self.number)
        if name in REQUESTS:
            return Call("ask", args | {"action": name})
        return Call(name, args)


def pick(job_ids: list[str], number: int) -> str:
    """The newest for 0."""
    return job_ids[-1 - number % len(job_ids)]


def check_versions(before: Rows, after: Rows) -> None:
    """A job's version, its ETag, grows with every visible change."""
    shown = ["status", "request", "stage", "progress", "result", "error", "attempt", "choices", "last_event"]
    old = {row.id: row for row in before["jobs"]}
    for row in after["jobs"]:
        was = old.get(row.id, row)
        changed = [name for name in shown if getattr(row, name) != getattr(was, name)]
        assert row.version >= was.version + bool(changed), f"{changed} changed and the version did not"


@pytest.fixture
def store(database: Database, settings: Settings) -> Store:
    return Store(database, settings)


def choose(names: str, chance: random.Random) -> list[Any]:
    """Calls with arguments by chance; several submissions are the same, of one spec or not, and want a teacher."""
    chosen: dict[str, Any] = {}
    made = []
    for name in names.split():
        args = {argument: chance.choice(options) for argument, options in ARGUMENTS[name].items()}
        if name == "submit":
            args = chosen.setdefault(name, args) | {"digest": args["digest"], "most": None, "teacher": 0}
        made.append((name, args))
    return made


def every(name: str, chance: random.Random) -> Iterator[Any]:
    """The call with each value that one of its arguments may have, the others by chance."""
    for argument, options in ARGUMENTS[name].items():
        for value in (
            options if argument in ("worker", "points", "choices", "id", "done", "artifacts", "reason", "by") else ()
        ):
            yield name, choose(name, chance)[0][1] | {argument: value}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_call_in_every_situation(store, at_once, situation):
    chance = random.Random(situation)
    for name in ARGUMENTS:
        machine = Lifecycle(store, at_once)
        made = choose(f"{name} " * ROUNDS, chance)
        made += every(name, chance) if situation == "running again" or THOROUGH else ()
        for _, args in made:
            if "fence" in args:
                machine.do(situation, (name, args | {"fence": (0, -1)}))
                args["fence"] = (0, 0)
            machine.do(situation, (name, args))


@pytest.mark.parametrize("situations", RACES)
def test_calls_that_are_known_to_meet(store, at_once, situations):
    chance = random.Random(situations)
    for names in RACES[situations]:
        machine = Lifecycle(store, at_once)
        for situation in situations.split(", ") * ROUNDS:
            machine.meet(situation, choose(names, chance), chance.random())


@pytest.mark.timeout(7200 if THOROUGH else 300)
def test_storage_does_what_the_model_does(store, at_once):
    run_state_machine_as_test(lambda: Lifecycle(store, at_once), settings=EFFORT)
