"""The embedded broker: nothing lost, nothing twice, and no file stops it."""

import json
import os
import shutil
import threading
from queue import Empty

import pytest
from kombu import Connection, Consumer, Producer, Queue

from storage.transport import ALIAS

GARBAGE = {
    "empty": "",
    "half": '{"body": "e30=", "propert',
    "a number": "5",
    "a list": "[]",
    "no properties": "{}",
    "no tag": '{"properties": {}}',
    "a wrong body": '{"body": 7, "properties": {"delivery_tag": "x", "body_encoding": "base64"}}',
    "no base64": '{"body": "a", "properties": {"delivery_tag": "x", "body_encoding": "base64"}}',
    "no encoding": '{"body": "e30=", "properties": {"delivery_tag": "x", "body_encoding": "rot13"}}',
    "a strange address": '{"body": "", "properties": {"delivery_tag": "x", "delivery_info": 5}}',
    "a strange type": '{"__type__": "decimal", "__value__": "abc"}',
    "deep": "[" * 100_000,
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "messages"


@pytest.fixture
def connect(tmp_path, folder):
    made = []

    def connection():
        options = {"data_folder_in": str(folder), "data_folder_out": str(folder), "polling_interval": 0.01}
        made.append(
            Connection(f"{ALIAS}://", transport_options=options | {"control_folder": str(tmp_path / "control")})
        )
        return made[-1]

    yield connection
    for one in made:
        one.release()


def send(connection, *bodies, queue="bell"):
    producer = Producer(connection.default_channel)
    for body in bodies:
        producer.publish(body, routing_key=queue, serializer="json")


def take(connection, queue="bell"):
    channel = connection.default_channel
    try:
        return channel.Message(channel._get(queue), channel=channel).decode()
    except Empty:
        return None


def drop(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)


def test_messages_arrive_in_order_and_leave_nothing(connect, folder):
    one, other = connect(), connect()
    send(one, *range(20))
    assert [take(other) for _ in range(20)] == list(range(20))
    assert take(other) is None
    assert list(folder.iterdir()) == []


def test_queues_are_apart_even_where_names_end_alike(connect):
    connection = connect()
    for queue in ("bell", "my-bell", "my.bell"):
        send(connection, queue, queue=queue)
    assert take(connection, "bell") == "bell"
    assert take(connection, "bell") is None
    channel = connection.default_channel
    assert [channel._size(queue) for queue in ("bell", "my-bell", "my.bell")] == [0, 1, 1]
    assert channel._purge("my-bell") == 1
    assert take(connection, "my.bell") == "my.bell"


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_set_aside(connect, folder, what):
    drop(folder, "00000000000000000000_a.bell.msg", GARBAGE[what])
    connection = connect()
    send(connection, "after it")
    assert take(connection) == "after it"
    assert list(folder.iterdir()) == []


def test_what_is_being_written_or_is_no_message_file_is_left_alone(connect, folder):
    for name in (".0_a.bell.msg.tmp", ".0_a.bell.msg.taken", "notes.txt", "0_a.bell.msg~"):
        drop(folder, name, "{}")
    (folder / "0_d.bell.msg").mkdir()
    connection = connect()
    send(connection, 1)
    assert take(connection) == 1
    assert take(connection) is None


def test_folders_that_vanish_come_back(connect, folder, tmp_path):
    connection = connect()
    send(connection, 1)
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "control", ignore_errors=True)
    assert take(connection) is None
    shutil.rmtree(folder)
    send(connection, 2)
    assert take(connection) == 2


def test_a_full_disk_leaves_no_part_of_a_message(connect, folder, monkeypatch):
    connection = connect()
    connection.default_channel.queue_declare("bell")
    folder.mkdir(exist_ok=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        connection.default_channel._put("bell", {"a": 1})
    assert list(folder.iterdir()) == []


def test_many_readers_and_writers_lose_and_double_nothing(connect, at_once):
    connections = [connect() for _ in range(6)]
    total, taken, lock = 4 * 60, [], threading.Lock()

    def work(index):
        if index < 4:
            return send(connections[index], *[index * 60 + number for number in range(60)])
        while True:
            body = take(connections[index])
            with lock:
                if body is not None:
                    taken.append(body)
                if len(taken) >= total:
                    return None

    assert at_once(6, work) == [None] * 6
    assert sorted(taken) == list(range(total))


def test_bindings_made_at_once_are_all_kept(connect, at_once, tmp_path):
    connections = [connect() for _ in range(8)]
    at_once(8, lambda i: connections[i].default_channel._queue_bind("pidbox", "", "", f"queue-{i}"))
    at_once(8, lambda i: connections[i].default_channel._queue_bind("pidbox", "", "", f"queue-{i}"))
    found = [binding.queue for binding in connections[0].default_channel.get_table("pidbox")]
    assert sorted(found) == [f"queue-{i}" for i in range(8)]


@pytest.mark.parametrize("content", ["", '[["", "", "a'])
def test_a_damaged_table_of_bindings_is_made_anew(connect, tmp_path, content):
    channel = connect().default_channel
    drop(tmp_path / "control", "pidbox.exchange", content)
    assert channel.get_table("pidbox") == []
    channel._queue_bind("pidbox", "", "", "b")
    assert [binding.queue for binding in channel.get_table("pidbox")] == ["b"]
    assert json.loads((tmp_path / "control" / "pidbox.exchange").read_text()) == [["", "", "b"]]


def test_a_consumer_gets_past_garbage(connect, folder):
    connection, heard = connect(), []
    for number, content in enumerate(GARBAGE.values()):
        drop(folder, f"{number:020d}_a.bell.msg", content)
    send(connection, "ding")

    def on_message(body, message):
        heard.append(body)
        message.ack()

    with Consumer(connection.default_channel, Queue("bell"), callbacks=[on_message]):
        connection.drain_events(timeout=10)
    assert heard == ["ding"]
