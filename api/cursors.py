"""Cursors of the list of jobs: the last id of a page, bound to the question that was asked."""

import hashlib
from collections.abc import Sequence

from api.problems import InvalidError
from storage.ids import JOB_ID

CHECK_CHARACTERS = 12


def make_cursor(job_id: str, question: Sequence[object]) -> str:
    """A cursor that only `read_cursor` with the same question accepts."""
    return f"{job_id}.{_check(job_id, question)}"


def read_cursor(cursor: str, question: Sequence[object]) -> str:
    """The last id of the page before.

    Raises:
        InvalidError: it is no cursor, or one of another question.
    """
    job_id, _, check = cursor.partition(".")
    if JOB_ID.fullmatch(job_id) is None or check != _check(job_id, question):
        message = "is not a cursor of this list; send the `next` of the page before, with the same filters"
        raise InvalidError(f"after {message}", errors=[(("query", "after"), message)])
    return job_id


def _check(job_id: str, question: Sequence[object]) -> str:
    return hashlib.sha256(repr((job_id, *question)).encode()).hexdigest()[:CHECK_CHARACTERS]
