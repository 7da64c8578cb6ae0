"""What every request pays for: counted, not timed."""

import gc
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import httpx
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from sqlalchemy import event

from api.app import create_app
from api.auth import _owner, authenticate
from storage.settings import Settings
from tests.api.conftest import Api, eventually, submit


def dependencies(dependant: Dependant) -> Iterator[Any]:
    for each in dependant.dependencies:
        yield each.call
        yield from dependencies(each)


def routes() -> list[Dependant]:
    found = [getattr(context, "dependant", None) for context in iter_route_contexts(create_app(Settings()).routes)]
    return [dependant for dependant in found if dependant is not None]


def test_no_dependency_takes_a_thread() -> None:
    """FastAPI runs plain functions in threads, and waits for them one by one."""
    calls = {call for dependant in routes() for call in dependencies(dependant)}
    assert len(calls) > 5
    called = [call if inspect.isfunction(call) else type(call).__call__ for call in calls]
    here = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    assert [call for call in called if not any(is_so(call) for is_so in here)] == []


def test_who_asks_is_found_out_before_anything_reads_it() -> None:
    keyed = [[each.call for each in dependant.dependencies] for dependant in routes()]
    asking = [calls for calls in keyed if _owner in calls]
    assert len(asking) > 15
    assert all(calls[0] is authenticate for calls in asking)


def test_a_job_that_ended_is_shown_with_one_question(api: Api, client: httpx.Client) -> None:
    """And one that waits with those that say why."""
    job_id = submit(client)["id"]
    assert asked(api, client, job_id)[0] > 1
    client.post(f"/jobs/{job_id}/cancel")
    assert asked(api, client, job_id) == (1, "cancelled")


def test_what_was_loaded_is_not_looked_through_again(api: Api) -> None:
    """A full pass of the garbage collector over torch's objects stops every request meanwhile."""
    eventually(lambda: gc.get_freeze_count() > 100_000, 60)
    assert len(gc.get_objects()) < gc.get_freeze_count()


def test_a_thread_gets_the_interpreter_back_soon(api: Api) -> None:
    assert sys.getswitchinterval() <= 0.001


def asked(api: Api, client: httpx.Client, job_id: str) -> tuple[int, str]:
    """Statements about a job while it is shown, and its status."""
    statements = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if job_id in str(parameters):
            statements.append(statement)

    event.listen(api.service.database.engine, "before_cursor_execute", note)
    try:
        status = client.get(f"/jobs/{job_id}").json()["status"]
    finally:
        event.remove(api.service.database.engine, "before_cursor_execute", note)
    return len(statements), status
