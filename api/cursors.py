"""Cursors of lists: the last id of a page, bound to the question that was asked."""

import hashlib
from collections.abc import Sequence

from api.problems import InvalidError
from storage.ids import ID

CHECK_CHARACTERS = 12


def make_cursor(last_id: str, question: Sequence[object]) -> str:
    """A cursor that only `read_cursor` with the same question accepts."""
    return f"{last_id}.{_check(last_id, question)}"


def read_cursor(cursor: str, question: Sequence[object]) -> str:
    """The last id of the page before.

    Raises:
        InvalidError: it is no cursor, or one of another question.
    """
    last_id, _, check = cursor.partition(".")
    if ID.fullmatch(last_id) is None or check != _check(last_id, question):
        message = "is not a cursor of this list; send the `next` of the page before, with the same filters"
        raise InvalidError(f"after {message}", errors=[(("query", "after"), message)])
    return last_id


def _check(last_id: str, question: Sequence[object]) -> str:
    return hashlib.sha256(repr((last_id, *question)).encode()).hexdigest()[:CHECK_CHARACTERS]
