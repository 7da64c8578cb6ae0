"""The reader of Server-Sent Events, however the bytes arrive."""

import pytest

from distillery.events import Event, parse

BODY = (
    ': hello\n\nid: 1\nevent: submitted\ndata: {}\n\nevent: progress\ndata: {"fraction": 0.5}\n\n'
    'id: 2\r\nevent: failed\r\ndata: {"error":\r\ndata: {"message": "a\u2028b\u0085c"}}\r\n\r\n'
    "id: 3\nevent: cut\ndata: {}\n"
).encode()
EVENTS = [
    Event(1, "submitted", {}),
    Event(None, "progress", {"fraction": 0.5}),
    Event(2, "failed", {"error": {"message": "a\u2028b\u0085c"}}),
]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_read_whole_whatever_the_chunks_and_a_cut_one_is_dropped(size: int) -> None:
    assert list(parse(BODY[i : i + size] for i in range(0, len(BODY), size))) == EVENTS
