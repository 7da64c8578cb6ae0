"""A TCP proxy between a service and its database or broker, which does to connections what networks do."""

import asyncio
import math
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.faults.servers import reserve_port

CHUNK = 64 * 1024
CALL_SECONDS = 10.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# PostgreSQL's protocol: COMMIT as psycopg sends it, a simple query of its own; the tag of a statement that wrote
# rows; the end of an answer, and the same where no transaction is open any more.
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
WROTE = re.compile(rb"(?:INSERT 0|UPDATE|DELETE|MERGE|COPY) [1-9]\d*\x00")
READY = b"Z\x00\x00\x00\x05"
IDLE = READY + b"I"

T = TypeVar("T")


@dataclass
class _Faults:
    """What is wrong with the network now."""

    partitioned: bool = False
    delay: float = 0.0
    replies_to_lose: int = 0
    lose_only_writes: bool = True
    lost_replies: int = 0


class Proxy:
    """Passes everything from a free port of 127.0.0.1 to the target until told otherwise.

    Its methods may be called in any thread. They return at once: a fault that lasts ends by itself, or by `heal`.
    """

    def __init__(self, target_host: str, target_port: int, chance: random.Random | None = None) -> None:
        self._target = (target_host, target_port)
        self._chance = chance or random.Random()
        self._faults = _Faults()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._listening = asyncio.Lock()
        self._healing: dict[str, asyncio.Task[None]] = {}
        self._guard = reserve_port()
        self.port: int = self._guard.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self._run(self._listen())

    def url(self, url: str) -> str:
        """The URL with this proxy's host and port in place of its own."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}"))

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._connections)

    @property
    def lost_replies(self) -> int:
        """How many COMMITs were done without their client hearing of it, since the beginning."""
        return self._faults.lost_replies

    def cut(self, share: float = 1.0) -> int:
        """Reset a random share of the present connections on both sides, rounded up; how many."""
        return self._run(self._cut(share))

    def refuse(self, seconds: float) -> None:
        """Cut all connections and refuse new ones for so long."""
        self._run(self._refuse(seconds))

    def half_open(self, seconds: float) -> None:
        """A partition: swallow what is said over connections, present and new; after so long, reset them all."""
        self._run(self._partition(seconds))

    def delay(self, seconds_each: float, duration: float) -> None:
        """Delay each chunk, in both directions, for so long."""
        self._run(self._slow_down(seconds_each, duration))

    def lose_commit_reply(self, count: int = 1, only_writes: bool = True) -> None:
        """Let PostgreSQL do the next so many COMMITs, swallow its answers and reset the clients.

        Each is counted in `lost_replies`. With `only_writes`, the COMMIT of a transaction that has written no row
        since this call passes, so that none is spent on reads.
        """
        self._run(self._arm(count, only_writes))

    def disarm(self) -> int:
        """Lose no more answers to COMMIT; how many were still to be lost."""
        return self._run(self._disarm())

    def heal(self) -> None:
        """End every fault now."""
        self._run(self._heal())

    def close(self) -> None:
        """Reset all connections and give the port back."""
        if self._loop.is_closed():
            return
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_SECONDS)
        self._loop.close()
        self._guard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_SECONDS)

    # What follows runs in the loop.

    async def _listen(self) -> None:
        async with self._listening:
            if self._server is None:
                self._server = await asyncio.start_server(
                    self._serve, "127.0.0.1", self.port, limit=CHUNK, backlog=512, reuse_address=True
                )

    async def _stop_listening(self) -> None:
        async with self._listening:
            if self._server is not None:
                self._server.close()
                self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self._faults, writer)
        self._connections.add(connection)
        try:
            if self._server is not None:  # else it was accepted just before that ended
                await connection.serve(reader, self._target)
        except asyncio.CancelledError:
            pass  # cut; asyncio's streams would log it as an error
        finally:
            self._connections.discard(connection)
            connection.reset()

    async def _cut(self, share: float) -> int:
        present = list(self._connections)
        chosen = self._chance.sample(present, math.ceil(share * len(present)))
        for connection in chosen:
            connection.cancel()
        return len(chosen)

    async def _refuse(self, seconds: float) -> None:
        await self._stop_listening()
        await self._cut(1.0)
        self._after(seconds, "refuse", self._listen)

    async def _partition(self, seconds: float) -> None:
        self._faults.partitioned = True
        for connection in self._connections:
            connection.silent = True
        self._after(seconds, "partition", self._rejoin)

    async def _rejoin(self) -> None:
        self._faults.partitioned = False
        for connection in list(self._connections):
            if connection.silent:
                connection.cancel()

    async def _slow_down(self, seconds_each: float, duration: float) -> None:
        self._faults.delay = seconds_each
        self._after(duration, "delay", self._hurry)

    async def _hurry(self) -> None:
        self._faults.delay = 0.0

    async def _arm(self, count: int, only_writes: bool) -> None:
        self._faults.replies_to_lose, self._faults.lose_only_writes = count, only_writes

    async def _disarm(self) -> int:
        left, self._faults.replies_to_lose = self._faults.replies_to_lose, 0
        return left

    def _after(self, seconds: float, fault: str, heal: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Heal the fault after so long; a later word on the same fault takes the earlier one's place."""

        async def later() -> None:
            await asyncio.sleep(seconds)
            await asyncio.shield(heal())  # to the end, once begun

        if fault in self._healing:
            self._healing[fault].cancel()
        self._healing[fault] = asyncio.create_task(later())

    async def _heal(self) -> None:
        for task in self._healing.values():
            task.cancel()
        await self._disarm()
        await self._hurry()
        await self._rejoin()
        await self._listen()

    async def _end(self) -> None:
        await self._stop_listening()
        await asyncio.sleep(0)  # who was accepted just now begins, and then ends in order
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CALL_SECONDS / 2)
        await asyncio.sleep(0)  # the sockets close in the loop's next turn


class _Connection:
    """A client, the server it talks to, and two pumps between them with bounded buffers."""

    def __init__(self, faults: _Faults, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task: asyncio.Task[Any] = task
        self.silent = faults.partitioned
        self._faults = faults
        self._writers = [client]
        self._wrote = False  # whether the open transaction wrote a row, as far as we looked
        self._sent = self._heard = b""  # the ends of what passed, as a message may come in two chunks
        self._withheld: bytes | None = None  # the answer so far to a COMMIT

    async def serve(self, client: asyncio.StreamReader, target: tuple[str, int]) -> None:
        """Pass bytes until both sides have ended or one is lost; without end while silent."""
        if self.silent:
            await asyncio.Event().wait()
        try:
            server, writer = await asyncio.open_connection(*target, limit=CHUNK)
            self._writers.append(writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(client, self._writers[1], self._to_server))
                pumps.create_task(self._pump(server, self._writers[0], self._to_client))
            for writer in self._writers:
                writer.close()
                await writer.wait_closed()
        except* OSError:
            pass

    def cancel(self) -> None:
        """Reset both sides."""
        self.reset()
        self.task.cancel()

    def reset(self) -> None:
        """Close both sockets so that the other ends get a reset; nothing where they are closed already."""
        for writer in self._writers:
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tap: Callable[[bytes], bytes]
    ) -> None:
        try:
            while chunk := await reader.read(CHUNK):
                if self._faults.delay:
                    await asyncio.sleep(self._faults.delay)
                if not self.silent and (passing := tap(chunk)):
                    writer.write(passing)
                    await writer.drain()
        except OSError:
            if not self.silent:
                raise
        if self.silent:
            await asyncio.Event().wait()  # neither side may hear that the other is gone
        writer.write_eof()

    def _to_server(self, chunk: bytes) -> bytes:
        self._sent = (self._sent + chunk)[-len(COMMIT) :]
        if self._faults.replies_to_lose and self._sent == COMMIT and (self._wrote or not self._faults.lose_only_writes):
            self._withheld = b""
        return chunk

    def _to_client(self, chunk: bytes) -> bytes:
        if self._withheld is not None:
            return self._withhold(chunk)
        if self._faults.replies_to_lose:
            heard = self._heard + chunk
            ended = heard.endswith(IDLE)
            self._wrote = not ended and (self._wrote or WROTE.search(heard) is not None)
            self._heard = b"" if ended else heard[-32:]
        else:
            self._wrote, self._heard = False, b""
        return chunk

    def _withhold(self, chunk: bytes) -> bytes:
        """Keep a COMMIT's answer until it is whole; lose it if it says that the transaction is committed."""
        answer = (self._withheld or b"") + chunk
        if answer[:-1].endswith(READY):
            self._withheld, self._wrote = None, False
            if not (self._faults.replies_to_lose and b"COMMIT\x00" in answer):
                return answer  # rolled back, or disarmed meanwhile
            self._faults.replies_to_lose -= 1
            self._faults.lost_replies += 1
            self.cancel()
        else:
            self._withheld = answer
        return b""
