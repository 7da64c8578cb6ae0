"""Who waits at the same time shares a question, and is answered as if it had asked alone."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import event, update
from structlog.testing import capture_logs

from api import batching
from api.batching import Batcher
from storage.tables import Job
from tests.api.conftest import Api, eventually, submit

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a question that is held up here holds up those that share the next."""
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", 60.0)


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that uvicorn has here."""
    return "asyncio"


class Source:
    """Answers each question with what was so when it began, once it may."""

    def __init__(self) -> None:
        self.value = 1
        self.fault: Exception | None = None
        self.asked: list[set[str]] = []
        self.may_answer = threading.Event()

    def ask(self, keys: set[str]) -> dict[str, int]:
        self.asked.append(keys)
        value, fault = self.value, self.fault
        assert self.may_answer.wait(20)
        if fault is not None:
            raise fault
        return {key: value for key in keys if key != "absent"}

    async def begun(self, questions: int) -> None:
        async with asyncio.timeout(20):
            while len(self.asked) < questions:
                await asyncio.sleep(0.001)


def start(batcher: Batcher[str, int], key: str) -> "asyncio.Task[int | None]":
    return asyncio.create_task(batcher.get(key))


async def test_an_answer_is_never_older_than_its_request() -> None:
    source = Source()
    batcher = Batcher(source.ask)
    early = start(batcher, "a")
    await source.begun(1)
    source.value = 2
    late = [start(batcher, key) for key in ("a", "b", "a", "absent")]
    await asyncio.sleep(0.01)
    source.may_answer.set()
    assert await early == 1
    assert await asyncio.gather(*late) == [2, 2, 2, None]
    assert source.asked == [{"a"}, {"a", "b", "absent"}]
    source.value = 3
    assert await batcher.get("a") == 3  # nothing is kept


async def test_who_goes_away_takes_nobody_along() -> None:
    source = Source()
    batcher = Batcher(source.ask)
    first = start(batcher, "a")
    await source.begun(1)
    collected = [start(batcher, key) for key in "aab"]
    await asyncio.sleep(0.01)
    first.cancel()
    collected[0].cancel()
    await asyncio.wait([first, collected[0]])
    source.may_answer.set()
    assert await asyncio.gather(*collected[1:]) == [1, 1]
    assert first.cancelled()
    assert collected[0].cancelled()


async def test_a_question_that_fails_fails_for_those_that_shared_it_alone() -> None:
    source = Source()
    batcher = Batcher(source.ask)
    first = start(batcher, "a")
    await source.begun(1)
    source.fault = ValueError("away")
    shared = [start(batcher, key) for key in "ab"]
    await asyncio.sleep(0.01)
    source.may_answer.set()
    assert await first == 1
    errors = await asyncio.gather(*shared, return_exceptions=True)
    assert [type(error) for error in errors] == [ValueError, ValueError]
    source.fault = None
    assert await batcher.get("a") == 1


async def test_who_waits_when_the_server_ends_does_not_wait_for_ever() -> None:
    source = Source()
    batcher = Batcher(source.ask)
    waiting = [start(batcher, "a")]
    await source.begun(1)
    waiting.append(start(batcher, "b"))
    await asyncio.sleep(0.01)
    (question,) = batcher._under_way
    question.cancel()
    source.may_answer.set()
    async with asyncio.timeout(20):
        await asyncio.wait(waiting)
    assert all(each.cancelled() for each in waiting)


async def test_who_waits_when_the_server_ends_before_it_asked_does_not_wait_for_ever() -> None:
    source = Source()
    batcher = Batcher(source.ask)
    waiting = start(batcher, "a")
    while not batcher._under_way:
        await asyncio.sleep(0)
    (question,) = batcher._under_way
    question.cancel()
    async with asyncio.timeout(20):
        await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert source.asked == []


async def test_a_question_is_about_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MOST", 3)
    source = Source()
    batcher = Batcher(source.ask)
    first = start(batcher, "first")
    await source.begun(1)
    others = [start(batcher, key) for key in "abcdefg"]
    await asyncio.sleep(0.01)
    source.may_answer.set()
    assert await asyncio.gather(first, *others) == [1] * 8
    assert source.asked == [{"first"}, set("abc"), set("def"), {"g"}]


async def test_a_question_that_hangs_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", 0.05)
    source = Source()
    batcher = Batcher(source.ask)
    hangs = start(batcher, "a")
    await source.begun(1)
    late = [start(batcher, key) for key in "ab"]
    await source.begun(2)  # though the first one has not ended
    source.value = 2
    later = start(batcher, "c")
    await source.begun(3)
    assert not hangs.done()
    source.may_answer.set()
    assert await asyncio.gather(hangs, *late, later) == [1, 1, 1, 2]
    assert source.asked == [{"a"}, {"a", "b"}, {"c"}]
    assert await batcher.get("d") == 2


class Held:
    """Requests that share a question: the one before it is held up until all of them are there."""

    def __init__(self, api: Api, pool: ThreadPoolExecutor) -> None:
        self._api, self._pool = api, pool
        self.questions = 0
        self.may_go_on = threading.Event()

    def note(self, _: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("SELECT jobs.id, jobs.owner") and " IN (" in statement:
            self.questions += 1
            assert self.may_go_on.wait(20)

    def get(self, client: httpx.Client, job_id: str) -> "Future[httpx.Response]":
        """Returns once the request waits for its turn; the first one's question has seen the database by then."""
        before, batcher = self.questions, self._api.service.jobs._batcher
        waiting = len(batcher._waiting)
        answer = self._pool.submit(client.get, f"/jobs/{job_id}")
        eventually(lambda: self.questions > before or len(batcher._waiting) > waiting)
        return answer


@contextmanager
def held(api: Api) -> Iterator[Held]:
    with ThreadPoolExecutor(16) as pool:
        held = Held(api, pool)
        event.listen(api.database.engine, "after_cursor_execute", held.note)
        try:
            yield held
        finally:
            held.may_go_on.set()
            event.remove(api.database.engine, "after_cursor_execute", held.note)


def test_many_share_a_question_that_sees_what_was_so_when_they_came(api: Api, client: httpx.Client) -> None:
    job_id, other = submit(client)["id"], submit(client)["id"]
    with held(api) as requests:
        early = requests.get(client, job_id)
        with api.database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(name="renamed"))
        late = [requests.get(client, each) for each in [job_id] * 6 + [other]]
        assert requests.questions == 1
        requests.may_go_on.set()
        assert early.result(20).json()["name"] != "renamed"
        answers = [each.result(20).json() for each in late]
    assert {(job["id"], job["name"] == "renamed") for job in answers} == {(job_id, True), (other, False)}
    assert [job["queue"]["position"] for job in answers[:6]] == [answers[0]["queue"]["position"]] * 6
    assert answers[6]["queue"]["position"] == answers[0]["queue"]["position"] + 1
    assert requests.questions == 2


def test_owners_who_share_a_question_see_their_own_jobs(api: Api, client: httpx.Client, owners: Iterator[str]) -> None:
    mine = submit(client)["id"]
    with api.client(next(owners)) as stranger:
        theirs = submit(stranger)["id"]
        with held(api) as requests:
            first = requests.get(client, mine)
            asked = [(client, mine), (client, theirs), (stranger, mine), (stranger, theirs)]
            shared = [requests.get(each, job_id) for each, job_id in asked]
            requests.may_go_on.set()
            assert [each.result(20).status_code for each in (first, *shared)] == [200, 200, 404, 404, 200]
            assert requests.questions == 2
    assert shared[1].result().json()["detail"] == f"there is no job {theirs}"


@pytest.mark.parametrize(
    ("odd", "status"), [({"progress": {"epoch": "many"}}, 500), ({"spec": {"spec_version": "next"}}, 200)], ids=[*"ps"]
)
def test_a_job_that_cannot_be_shown_hides_no_other(
    api: Api, client: httpx.Client, odd: dict[str, Any], status: int
) -> None:
    """Another version may have written it."""
    good, bad = submit(client)["id"], submit(client)["id"]
    with api.database.write() as session:
        before = {name: getattr(session.get_one(Job, bad), name) for name in odd}
        session.execute(update(Job).where(Job.id == bad).values(odd))
    with api.worker(), capture_logs(), held(api) as requests:  # the error's traceback is long
        first = requests.get(client, good)
        shared = [requests.get(client, job_id) for job_id in [bad, good] * 3]
        requests.may_go_on.set()
        assert first.result(20).status_code == 200
        assert [each.result(20).status_code for each in shared] == [status, 200] * 3
    if status == 200:
        reason = "no worker reads spec version next; upgrade the workers"
        assert shared[0].result().json()["queue"]["reason"] == reason
    with api.database.write() as session:
        session.execute(update(Job).where(Job.id == bad).values(before))
