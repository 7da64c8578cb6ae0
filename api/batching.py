"""One question to the database for all who wait at the same time."""

import asyncio
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Generic, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

Key = TypeVar("Key")
Value = TypeVar("Value")


class Batcher(Generic[Key, Value]):
    """While a question is under way, whoever comes is collected for the next one.

    Nothing is kept: each is answered by a question that began after it came, as if it had asked alone. What a thread
    and a question cost is shared, and the threads that ask do not take the interpreter from each other.

    Args:
        ask: finds the values of several keys, in a thread; keys may be absent from what it returns.
    """

    def __init__(self, ask: Callable[[set[Key]], Mapping[Key, Value]]) -> None:
        self._ask = ask
        self._waiting: list[tuple[Key, asyncio.Future[Value | None]]] = []
        self._asking: asyncio.Task[None] | None = None
        self._limiter = CapacityLimiter(1)  # threads that are busy otherwise must not delay it

    async def get(self, key: Key) -> Value | None:
        """The value as it is now, None where there is none; raises what its question raised."""
        found: asyncio.Future[Value | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, found))
        if self._asking is None:  # in a context of its own: it is not the first one's request alone
            self._asking = asyncio.create_task(self._answer(), context=Context())
        return await found

    async def _answer(self) -> None:
        asked: list[tuple[Key, asyncio.Future[Value | None]]] = []
        try:
            while self._waiting:
                asked, self._waiting = self._waiting, []
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
        finally:
            self._asking = None
            for _, future in asked + self._waiting:
                future.cancel()  # the server stops; those that were answered are done already
