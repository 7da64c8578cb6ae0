"""HTTP/1.1 for clients that are slow, silent or gone: none of them keeps a connection, and what it holds, for ever."""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30.0
"""What a request's head may take to arrive, from the connection's beginning or from its own first byte."""
STALL_SECONDS = 60.0
"""How long a client may take nothing of what is sent to it, once its buffers are full or the connection is to close."""

UNSENT_BYTES = 131_072
"""What the kernel keeps for a client that does not read, beside what is on its way: else it grows to megabytes."""


class Protocol(H11Protocol):
    """Uvicorn's, which by itself waits without an end for the head of a request and for a reader that reads nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        connection = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # a Unix socket
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()  # of the next request; or what comes is the rest of one that was answered already
        else:
            self._cancel_head()

    def _await_head(self) -> None:
        self._head = self._head or self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _cancel_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def _watch_reader(self) -> None:
        """Cut the client off unless it takes something every now and then: nothing is added while this looks."""
        if self._stall is None:
            self._stall = self.loop.call_later(STALL_SECONDS, self._look_at_reader, self._untaken())

    def _look_at_reader(self, before: int) -> None:
        self._stall = None
        if self._untaken() < before:
            self._watch_reader()
        else:
            self.transport.abort()

    def _untaken(self) -> int:
        """Bytes on their way to the client: in the server's buffer, and in the kernel's, which it takes from first."""
        unsent = bytes(4)
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError, ValueError):  # no TCP, or closed meanwhile
                unsent = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, unsent)
        return int(self.transport.get_write_buffer_size()) + int(struct.unpack("i", unsent)[0])

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._cancel_stall()

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._bound_closing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._bound_closing()

    def _bound_closing(self) -> None:
        if self.transport.is_closing():  # which waits for what is not sent yet
            self._watch_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head()
        self._cancel_stall()
        super().connection_lost(exc)
