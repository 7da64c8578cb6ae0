"""How much memory the bodies of requests may take that are under way at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from api.problems import TooManyBodiesError

BODIES_BYTES = 64 * 2**20


class Bodies:
    """The memory of all bodies at once, in one API process; only its event loop counts."""

    def __init__(self, max_body_bytes: int) -> None:
        self._most = max(BODIES_BYTES, 4 * max_body_bytes)
        self.held = 0

    def take(self, size: int) -> None:
        """Raise `TooManyBodiesError` where there is no room for so many bytes more."""
        if self.held + size > self._most:
            message = "too many bodies arrive at once; try again"
            raise TooManyBodiesError(message, headers={"Retry-After": "2", "Connection": "close"})
        self.held += size

    def give_back(self, size: int) -> None:
        self.held -= size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """The time in which so many bytes are held."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)
