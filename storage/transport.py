"""The embedded broker: kombu's filesystem transport, made safe.

As shipped, a reader can take a file that is still being written, and one empty file stops the worker for
good (kombu issue 1551). Here a message is written under a temporary name and renamed, taken by a rename in
the same folder, and a file that is no message is set aside.
"""

import contextlib
import fcntl
import os
import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps, loads

ALIAS = "distillery-files"


class Channel(filesystem.Channel):  # type: ignore[misc]
    """A channel whose messages are complete or absent."""

    def _folder(self) -> Path:
        folder = Path(self.data_folder_in)
        folder.mkdir(parents=True, exist_ok=True)  # someone may have emptied the broker's folder
        return folder

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        name = f"{time.time_ns():020d}_{uuid.uuid4().hex}.{queue}.msg"
        temporary = self._folder() / f".{name}.tmp"
        try:
            temporary.write_text(dumps(message), encoding="utf-8")
            os.replace(temporary, temporary.with_name(name))
        finally:
            temporary.unlink(missing_ok=True)  # the disk may be full

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        for path in self._messages(queue):
            taken = path.with_name(f".{path.name}.taken")
            try:
                os.rename(path, taken)
            except FileNotFoundError:
                continue  # another reader was faster
            try:
                payload = loads(taken.read_text(encoding="utf-8"))
                if isinstance(self.Message(payload, channel=self).delivery_info, dict):
                    return payload
            except Exception:  # whatever it holds, it is no message: the reconciler mends a lost doorbell
                continue
            finally:
                with contextlib.suppress(OSError):
                    taken.unlink()
        raise Empty

    def _messages(self, queue: str) -> list[Path]:
        name = f"{queue}.msg"
        with contextlib.suppress(FileNotFoundError):
            return sorted(path for path in self._folder().iterdir() if path.name.partition(".")[2] == name)
        return []

    def _size(self, queue: str) -> int:
        return len(self._messages(queue))

    def get_table(self, exchange: str) -> list[Any]:
        try:
            return super().get_table(exchange)  # type: ignore[no-any-return]
        except ValueError:
            return []  # made this moment by another process, or damaged: the next binding writes it anew

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """As kombu's, but two processes that start at once neither lose a binding nor read half a table."""
        self.control_folder.mkdir(parents=True, exist_ok=True)
        with self._exchange_file(exchange).open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            try:
                table = loads(file.read())
            except ValueError:
                table = []
            binding = [routing_key or "", pattern or "", queue or ""]
            if binding not in table:
                file.truncate(0)
                file.write(dumps([binding, *table]))

    def _purge(self, queue: str) -> int:
        messages = self._messages(queue)
        for path in messages:
            path.unlink(missing_ok=True)
        return len(messages)


class Transport(filesystem.Transport):  # type: ignore[misc]
    """Kombu's filesystem transport with that channel."""

    Channel = Channel


# kombu finds transports by alias only: URLs that name a class fail.
TRANSPORT_ALIASES[ALIAS] = "storage.transport:Transport"
