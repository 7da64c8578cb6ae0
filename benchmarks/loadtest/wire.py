"""HTTP/1.1 over bare asyncio streams: the clients share two cores with what they measure."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

LIMIT = 1 << 24
"""Bytes of one line of a stream, or of all headers."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class StreamedEvent:
    """One Server-Sent Event; `id` is None for progress."""

    id: int | None
    type: str
    data: dict[str, Any]


class Connection:
    """One connection at a time, opened when needed and kept for as long as the server keeps it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(
        self, method: str, path: str, *, body: bytes = b"", headers: dict[str, str] | None = None, seconds: float = 30.0
    ) -> Answer:
        """One request and its whole answer; whatever goes wrong raises an OSError or a TimeoutError."""
        async with asyncio.timeout(seconds):
            try:
                reader, status, found = await self._send(method, path, body, headers or {})
                if found.get("transfer-encoding") == "chunked":
                    content = b"".join([chunk async for chunk in _chunks(reader)])
                else:
                    content = await reader.readexactly(int(found.get("content-length", 0)))
                if found.get("connection") == "close":
                    self.close()
                return Answer(status, found, content)
            except BaseException:
                self.close()
                raise

    @asynccontextmanager
    async def stream(self, path: str, headers: dict[str, str]) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """The status of an answer, and its chunks as they come."""
        try:
            reader, status, found = await self._send("GET", path, b"", headers)
            yield status, _chunks(reader) if found.get("transfer-encoding") == "chunked" else _nothing()
        finally:
            self.close()

    async def _send(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[asyncio.StreamReader, int, dict[str, str]]:
        if self._writer is None or self._reader is None or self._reader.at_eof():
            self.close()
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=LIMIT)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self._writer.drain()
        head, *rest = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
        return self._reader, int(head.split(" ")[1]), found

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def parse_event(chunk: bytes) -> StreamedEvent | None:
    """The event in a chunk; None for comments. The service sends each in a chunk of its own."""
    fields = dict(line.partition(": ")[::2] for line in chunk.decode().splitlines() if line)
    if "event" not in fields:
        return None
    return StreamedEvent(int(fields["id"]) if "id" in fields else None, fields["event"], json.loads(fields["data"]))
