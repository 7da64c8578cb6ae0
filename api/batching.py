"""One question to the database for all who wait at the same time."""

import asyncio
from collections.abc import Callable, Mapping
from contextvars import Context
from functools import partial
from typing import Generic, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

MOST = 40
"""Keys of one question: what it finds is in memory at once."""
PATIENCE_SECONDS = 0.5
"""After which a question holds nobody else up: another one begins beside it."""
QUESTIONS = 10
"""At once, each in a thread: so many may hang before those that come later wait for one of them."""

Key = TypeVar("Key")
Value = TypeVar("Value")
Waiting = list[tuple[Key, asyncio.Future[Value | None]]]


class Batcher(Generic[Key, Value]):
    """While a question is under way, whoever comes is collected for the next one.

    Nothing is kept: each is answered by a question that began after it came, as if it had asked alone. What a thread
    and a question cost is shared, and the threads that ask do not take the interpreter from each other.

    Args:
        ask: finds the values of several keys, in a thread; keys may be absent from what it returns.
    """

    def __init__(self, ask: Callable[[set[Key]], Mapping[Key, Value]]) -> None:
        self._ask = ask
        self._waiting: Waiting[Key, Value] = []
        self._awaited: asyncio.Task[None] | None = None
        """The question that those who wait are waiting for to end."""
        self._under_way: set[asyncio.Task[None]] = set()
        self._limiter = CapacityLimiter(QUESTIONS)  # threads that are busy otherwise must not delay it

    async def get(self, key: Key) -> Value | None:
        """The value as it is now, None where there is none; raises what its question raised."""
        found: asyncio.Future[Value | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, found))
        if self._awaited is None:
            self._begin()
        return await found

    def _begin(self) -> None:
        """The next question, if anybody waits."""
        asked, self._waiting, self._awaited = self._waiting[:MOST], self._waiting[MOST:], None
        if asked:  # in a context of its own: it is not the first one's request alone
            self._awaited = task = asyncio.create_task(self._answer(asked), context=Context())
            self._under_way.add(task)
            task.add_done_callback(partial(self._ended, asked))
            asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._go_on_without, task)

    def _ended(self, asked: Waiting[Key, Value], task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if task.cancelled():  # the server stops
            for _, future in asked + self._waiting:
                future.cancel()
            self._waiting = []
        self._go_on_without(task)

    def _go_on_without(self, task: asyncio.Task[None]) -> None:
        if self._awaited is task:
            self._begin()

    async def _answer(self, asked: Waiting[Key, Value]) -> None:
        try:
            found = await anyio.to_thread.run_sync(self._ask, {key for key, _ in asked}, limiter=self._limiter)
        except Exception as error:
            for _, future in asked:
                if not future.done():  # who waited for it may be gone
                    future.set_exception(error)
        else:
            for key, future in asked:
                if not future.done():
                    future.set_result(found.get(key))
