"""One launcher per home, and a port of its own."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distillery.home import LOCK, Lock, ServeError, empty_broker, find_port, url_of
from storage.settings import Settings


def test_a_second_launcher_is_refused_and_told_where_the_first_one_answers(tmp_path: Path) -> None:
    first = Lock(tmp_path)
    first.write("http://127.0.0.1:1234")
    with pytest.raises(ServeError, match=r"http://127\.0\.0\.1:1234"):
        Lock(tmp_path)
    first.release()
    Lock(tmp_path).release()


def test_a_home_stays_taken_while_a_child_of_a_dead_launcher_runs(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=(lock.descriptor,)
    )
    lock.release()  # as the kernel does for a launcher that was killed
    try:
        with pytest.raises(ServeError):
            Lock(tmp_path)
    finally:
        child.communicate(timeout=10)
    Lock(tmp_path).release()


def test_the_address_is_written_whole(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    lock.write("http://127.0.0.1:8000/a-longer-one")
    lock.write("http://127.0.0.1:1")
    assert json.loads((tmp_path / LOCK).read_text())["url"] == "http://127.0.0.1:1"
    lock.release()


def test_only_the_embedded_broker_is_emptied(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    (settings.broker_folder / "messages").mkdir(parents=True)
    empty_broker(Settings(home=tmp_path, broker_url="redis://elsewhere"))
    assert settings.broker_folder.exists()
    empty_broker(settings)
    assert not settings.broker_folder.exists()


def test_a_taken_port_is_refused_and_zero_finds_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=str(port)):
            find_port("127.0.0.1", port)
        found = find_port("127.0.0.1", 0)
    assert 0 < found != port


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")],
)
def test_where_a_bound_host_is_reached(host: str, url: str) -> None:
    assert url_of(host, 80) == url
