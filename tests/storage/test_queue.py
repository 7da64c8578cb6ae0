"""The doorbell: heard by real consumers, and never in a submission's way."""

import secrets
import select
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from celery.contrib.testing.worker import start_worker
from kombu import Consumer, Queue
from pydantic import SecretStr

from storage.queue import TASK, Doorbell, make_celery, queue_name
from storage.settings import Settings
from tests.conftest import REDIS, drop_queues

QUICK = 5.0
"""Seconds that ringing may take at most, whatever the broker does."""


class Proxy:
    """Stands between a client and Redis, and can freeze, hang up or come back."""

    def __init__(self, target):
        self.target, self.frozen, self.away = target, False, False
        self.pairs, self.stopped = [], threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.server.getsockname()[1]}/0"

    def run(self):
        while not self.stopped.is_set():
            if self.frozen:
                time.sleep(0.01)
                continue
            sockets = [self.server, *(one for pair in self.pairs for one in pair)]
            try:
                ready = select.select(sockets, [], [], 0.01)[0]
            except (OSError, ValueError):
                continue  # hung up meanwhile
            for one in ready:
                self.accept() if one is self.server else self.forward(one)

    def freeze(self):
        self.frozen = True
        time.sleep(0.1)  # until it has looked

    def accept(self):
        client = self.server.accept()[0]
        if self.away:
            client.close()
        else:
            self.pairs.append((client, socket.create_connection(self.target)))

    def forward(self, source):
        for pair in list(self.pairs):
            if source in pair:
                data = b""
                try:
                    data = source.recv(65536)
                    pair[1 - pair.index(source)].sendall(data)
                except OSError:
                    pass
                if not data:
                    self.hang_up(pair)

    def hang_up(self, *pairs):
        for pair in pairs or list(self.pairs):
            self.pairs.remove(pair)
            for one in pair:
                one.close()

    def stop(self):
        self.stopped.set()
        self.thread.join(10)
        self.hang_up()
        self.server.close()


@pytest.fixture
def proxied(servers, tmp_path):
    address = urlsplit(REDIS)
    proxy = Proxy((address.hostname, address.port or 6379))
    prefix = f"distillery-test-{secrets.token_hex(6)}"
    yield proxy, Doorbell(Settings(home=tmp_path, broker_url=SecretStr(proxy.url), queue_prefix=prefix))
    proxy.stop()
    drop_queues(prefix)


def ring(doorbell, device="cpu"):
    started = time.monotonic()
    taken = doorbell.ring(device)
    assert time.monotonic() - started < QUICK
    return taken


def test_queues(settings):
    assert queue_name(settings, "auto") == queue_name(settings, "cpu") == settings.queue_prefix
    assert queue_name(settings, "cuda") == f"{settings.queue_prefix}-cuda"


def test_a_ring_waits_where_it_belongs(settings):
    doorbell = Doorbell(settings)
    assert doorbell.waiting("auto") == 0
    for device in ("cpu", "auto", "cuda"):
        assert ring(doorbell, device)
    assert (doorbell.waiting("cpu"), doorbell.waiting("auto"), doorbell.waiting("cuda")) == (2, 2, 1)


def test_a_consumer_hears_each_ring_once(settings):
    doorbell, heard = Doorbell(settings), []
    for _ in range(3):
        assert ring(doorbell, "cuda")

    def on_message(body, message):
        heard.append(message.headers["task"])
        message.ack()

    with make_celery(settings).connection_for_read() as connection:
        queue = Queue(queue_name(settings, "cuda"))
        with Consumer(connection.default_channel, queue, callbacks=[on_message], accept=["json"]):
            while len(heard) < 3:
                connection.drain_events(timeout=10)
    assert heard == [TASK] * 3
    assert doorbell.waiting("cuda") == 0


def test_a_celery_worker_hears_it(settings):
    heard = threading.Semaphore(0)
    app = make_celery(settings)

    def hear():
        heard.release()

    app.task(name=TASK, shared=False)(hear)
    if settings.broker is None:
        (settings.broker_folder / "messages" / f"0_a.{settings.queue_prefix}.msg").write_text("{}")
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=20):
        doorbell = Doorbell(settings)
        for _ in range(2):
            assert ring(doorbell)
            assert heard.acquire(timeout=20)
    assert doorbell.waiting("cpu") == 0


def test_many_threads_ring(settings, at_once):
    doorbell = Doorbell(settings)
    assert at_once(20, lambda _: doorbell.ring("cpu")) == [True] * 20
    assert doorbell.waiting("cpu") == 20


@pytest.mark.parametrize("accepts", [True, False], ids=["frozen", "gone"])
def test_a_broker_that_never_answers_delays_nobody(tmp_path, accepts):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        if not accepts:
            server.close()
        doorbell = Doorbell(Settings(home=tmp_path, broker_url=SecretStr(url)))
        for _ in range(2):
            assert ring(doorbell) is False
            started = time.monotonic()
            assert doorbell.waiting("cpu") is None
            assert time.monotonic() - started < 2 * QUICK


def test_a_broker_that_freezes_later_delays_nobody(proxied):
    proxy, doorbell = proxied
    assert ring(doorbell)
    proxy.freeze()
    assert not ring(doorbell)
    assert not ring(doorbell)
    proxy.frozen = False
    time.sleep(0.1)
    assert ring(doorbell) or ring(doorbell)


def test_a_broker_that_was_away_is_found_again(proxied):
    proxy, doorbell = proxied
    assert ring(doorbell)
    proxy.away = True
    proxy.hang_up()
    assert not ring(doorbell)
    proxy.away = False
    assert ring(doorbell)
    assert doorbell.waiting("auto") is not None


def test_an_embedded_broker_without_its_folder_or_disk(embedded_settings):
    doorbell = Doorbell(embedded_settings)
    folder = embedded_settings.broker_folder
    for child in folder.iterdir():
        child.rmdir()
    assert ring(doorbell)
    for file in (folder / "messages").iterdir():
        file.unlink()
    (folder / "messages").rmdir()
    (folder / "messages").write_text("a file where the folder belongs")
    assert not ring(doorbell)
    assert doorbell.waiting("cpu") is None


@pytest.fixture
def embedded_settings(tmp_path):
    return Settings(home=tmp_path)


def test_what_was_measured_is_set(settings):
    """The settings whose other values lost or doubled work (docs/decisions)."""
    conf = make_celery(settings).conf
    assert (conf.worker_pool, conf.worker_concurrency, conf.worker_pool_start_method) == ("prefork", 1, "spawn")
    assert conf.worker_proc_alive_timeout >= 60
    assert conf.task_acks_late == (settings.broker is None)
    assert conf.worker_disable_prefetch == (settings.broker is not None)
    assert not conf.task_reject_on_worker_lost
    assert not conf.worker_cancel_long_running_tasks_on_connection_loss
    assert conf.task_ignore_result
    assert conf.result_backend is None
    assert (conf.broker_connection_retry_on_startup, conf.broker_connection_max_retries) == (True, None)
    assert list(conf.accept_content) == ["json"]
