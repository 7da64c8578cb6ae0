"""Uploads over HTTP: parts in any order, each with its digest; nothing acknowledged is lost, nothing cut is kept."""

import base64
import contextlib
import errno
import hashlib
import json
import random
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import receiving
from storage import attempts, uploads
from storage.errors import StaleAttemptError
from storage.lifecycle import Fence
from tests.api.conftest import Api, eventually, said, serving, with_owners
from tests.conftest import OpenSettings, embedded

PART = 65_536
CONTENT = random.Random(0).randbytes(179_200)  # three parts of PART bytes, the last one shorter


def content_digest(data: bytes) -> dict[str, str]:
    return {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"}


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def begin(client: httpx.Client, content: bytes = CONTENT, many: str = "datasets", **changes: Any) -> dict[str, Any]:
    body = {"name": "flowers", "size": len(content), "file": "flowers.zip", "digest": sha256(content)} | changes
    response = client.post(f"/{many}", json=body)
    assert response.status_code == 201, response.text
    upload: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/{many}/{upload['id']}"
    return upload


def part(upload: dict[str, Any], number: int, content: bytes = CONTENT) -> bytes:
    return content[(number - 1) * upload["part_size"] : number * upload["part_size"]]


def put(client: httpx.Client, upload: dict[str, Any], number: int, data: bytes, **headers: str) -> httpx.Response:
    many = "datasets" if upload["id"].startswith("ds_") else "models"
    address = f"/{many}/{upload['id']}/parts/{number}"
    return client.put(address, content=data, headers=content_digest(data) | headers)


def send_whole(client: httpx.Client, content: bytes = CONTENT, many: str = "datasets") -> dict[str, Any]:
    upload = begin(client, content, many)
    for number in upload["missing"]:
        assert put(client, upload, number, part(upload, number, content)).status_code == 200
    done = client.post(f"/{many}/{upload['id']}/complete")
    assert done.status_code == 200, done.text
    checking: dict[str, Any] = done.json()
    return checking


def check(api: Api, upload_id: str) -> Fence:
    """Claim the check of an upload, as a worker would."""
    with api.database.read() as session:
        check_id = session.get_one(uploads.Upload, upload_id).check_id
    assert check_id is not None
    return api.claim(check_id)


def pass_check(api: Api, upload_id: str, profile: dict[str, Any] | None = None, **files: bytes) -> None:
    api.succeed(check(api, upload_id), files, {"profile": profile or {"samples": 1}})


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that takes small parts only."""
    values = with_owners(max_part_bytes=PART, max_upload_bytes=10 * PART)
    with serving(embedded(tmp_path_factory.mktemp("small"), **values)) as api:
        yield api


@pytest.fixture
def sender(small: Api, owner: str) -> Any:
    with small.client(owner) as client:
        yield client


def left(api: Api, upload: dict[str, Any]) -> list[Path]:
    return sorted((api.settings.uploads / upload["id"]).glob("*"))


@pytest.mark.parametrize("many", ["datasets", "models"])
def test_the_way_of_an_upload(api: Api, client: httpx.Client, many: str):
    upload = begin(client, b"some bytes", many)
    assert (upload["status"], upload["parts"], upload["missing"], upload["version"]) == ("uploading", 1, [1], 1)
    said(client.post(f"/{many}/{upload['id']}/complete"), 409, "conflict")
    shown = put(client, upload, 1, b"some bytes").json()
    assert (shown["status"], shown["missing"]) == ("uploading", [])
    done = client.post(f"/{many}/{upload['id']}/complete").json()
    assert (done["status"], done["profile"], done["error"]) == ("checking", None, None)
    assert client.post(f"/{many}/{upload['id']}/complete").json()["status"] == "checking"  # once more: nothing
    said(put(client, upload, 1, b"some bytes"), 409, "conflict")
    pass_check(api, upload["id"], {"samples": 7}, **{"page.png": b"picture"})
    ready = client.get(f"/{many}/{upload['id']}?wait=20").json()
    assert (ready["status"], ready["profile"]) == ("ready", {"samples": 7})
    assert ready["files"] == [{"name": "page.png", "size": 7, "media_type": "application/octet-stream"}]
    page = client.get(f"/{many}/{upload['id']}/files/page.png")
    assert (page.content, page.headers["content-disposition"]) == (b"picture", 'attachment; filename="page.png"')
    said(client.get(f"/{many}/{upload['id']}/files/other.png"), 404, "not_found")
    assert client.delete(f"/{many}/{upload['id']}").status_code == 204
    said(client.get(f"/{many}/{upload['id']}"), 404, "not_found")


def test_versions_count_up_and_are_never_given_twice(client: httpx.Client):
    assert [begin(client, b"x")["version"] for _ in range(3)] == [1, 2, 3]
    assert begin(client, b"x", name="trees")["version"] == 1
    newest = client.get("/datasets?name=flowers&limit=1").json()
    assert newest["data"][0]["version"] == 3
    client.delete(f"/datasets/{newest['data'][0]['id']}")
    assert begin(client, b"x")["version"] == 4
    assert begin(client, b"x", "models")["version"] == 1


def test_lists_have_pages_and_filters(client: httpx.Client):
    made = [begin(client, b"x", name=name)["id"] for name in ("a", "b", "a", "a")]
    page = client.get("/datasets?limit=2").json()
    rest = client.get("/datasets", params={"limit": 2, "after": page["next"]}).json()
    assert [each["id"] for each in page["data"] + rest["data"]] == sorted(made, reverse=True)
    assert not rest["has_more"]
    assert [each["name"] for each in client.get("/datasets?name=b").json()["data"]] == ["b"]
    assert client.get("/datasets?status=ready").json()["data"] == []
    assert len(client.get("/datasets?status=uploading").json()["data"]) == 4
    said(client.get("/models", params={"after": page["next"]}), 422, "invalid_parameter")


def test_a_check_is_no_job_to_anyone(api: Api, client: httpx.Client):
    upload = send_whole(client, b"bytes")
    with api.database.read() as session:
        check_id = session.get_one(uploads.Upload, upload["id"]).check_id
    assert client.get("/jobs").json()["data"] == []
    for method, address in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/logs"), ("GET", "/artifacts")):
        said(client.request(method, f"/jobs/{check_id}{address}"), 404, "not_found")


def test_a_failed_check_says_why_and_may_be_tried_again(api: Api, client: httpx.Client):
    upload = send_whole(client, b"bytes")
    fence = check(api, upload["id"])
    with api.database.write() as session:
        attempts.fail(session, fence, {"code": "bad_data", "kind": "user", "message": "no sample can be read"})
    shown = client.get(f"/datasets/{upload['id']}?wait=20").json()
    assert (shown["status"], shown["profile"]) == ("failed", None)
    assert shown["error"] == {"code": "bad_data", "kind": "user", "message": "no sample can be read"}
    assert client.get("/datasets?status=failed").json()["data"][0]["error"]["code"] == "bad_data"
    assert client.post(f"/datasets/{upload['id']}/complete").json()["status"] == "checking"
    pass_check(api, upload["id"])
    assert client.get(f"/datasets/{upload['id']}").json()["status"] == "ready"


def test_one_whose_parts_do_not_make_what_was_announced_is_mended(small: Api, sender: httpx.Client):
    upload = begin(sender)
    for number, data in enumerate((part(upload, 1), b"\0" * PART, part(upload, 3)), start=1):
        assert put(sender, upload, number, data).status_code == 200
    sender.post(f"/datasets/{upload['id']}/complete")
    said(put(sender, upload, 2, part(upload, 2)), 409, "conflict")  # its check is on the way
    fence = check(small, upload["id"])
    said(put(sender, upload, 2, part(upload, 2)), 409, "conflict")
    with small.database.write() as session:
        attempts.fail(session, fence, {"code": "digest_mismatch", "kind": "user", "message": "other bytes"})
    assert put(sender, upload, 2, part(upload, 2)).json()["status"] == "failed"
    assert len(left(small, upload)) == 3
    assert sender.post(f"/datasets/{upload['id']}/complete").json()["status"] == "checking"
    fence = check(small, upload["id"])
    with small.database.write() as session:
        parts = [small.settings.home / each.path for each in uploads.list_parts(session, upload["id"])]
        assert b"".join(path.read_bytes() for path in parts) == CONTENT
        uploads.join(session, fence, upload["id"], sha256(CONTENT))
        attempts.fail(session, fence, {"code": "bad_data", "kind": "user", "message": "no data set"})
    said(put(sender, upload, 2, part(upload, 2)), 409, "conflict")  # joined: no part would change it


def test_parts_in_any_order_again_and_after_a_cut(small: Api, sender: httpx.Client):
    upload = begin(sender)
    assert (upload["parts"], upload["part_size"], upload["missing"]) == (3, PART, [1, 2, 3])
    assert put(sender, upload, 3, part(upload, 3)).json()["missing"] == [1, 2]
    cut(small, sender, upload, 1)
    eventually(lambda: len(left(small, upload)) == 1)
    assert sender.get(f"/datasets/{upload['id']}").json()["missing"] == [1, 2]
    assert put(sender, upload, 1, b"\0" * PART).status_code == 200
    assert put(sender, upload, 1, part(upload, 1)).status_code == 200  # the newest counts
    assert put(sender, upload, 2, part(upload, 2)).json()["missing"] == []
    with small.database.read() as session:
        paths = [small.settings.home / each.path for each in uploads.list_parts(session, upload["id"])]
    assert b"".join(path.read_bytes() for path in paths) == CONTENT
    assert sorted(paths) == left(small, upload)


def cut(api: Api, client: httpx.Client, upload: dict[str, Any], number: int) -> None:
    """Send half a part and hang up."""
    data = part(upload, number)
    with socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(head_of(client, upload, number) + data[: len(data) // 2])
        time.sleep(0.2)


def head_of(client: httpx.Client, upload: dict[str, Any], number: int) -> bytes:
    """Of the request that sends a part."""
    data = part(upload, number)
    head = [f"PUT /datasets/{upload['id']}/parts/{number} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
    head += [f"{name}: {value}" for name, value in content_digest(data).items()]
    head += [f"Authorization: {client.headers['authorization']}"]
    return "\r\n".join([*head, "", ""]).encode()


@pytest.mark.parametrize(("ends", "status", "code"), [("deleted", 404, "not_found"), ("joined", 409, "conflict")])
def test_a_part_that_arrives_when_its_upload_has_gone_on_is_told_so(
    small: Api, sender: httpx.Client, ends: str, status: int, code: str
):
    upload = begin(sender, CONTENT[: 2 * PART])
    data = [part(upload, number) for number in (1, 2)]

    def halves() -> Any:
        """The first part once more, of which half is there when the upload ends otherwise."""
        yield data[0][: PART // 2]
        eventually(lambda: len(left(small, upload)) == (3 if ends == "joined" else 1))
        if ends == "deleted":
            assert sender.delete(f"/datasets/{upload['id']}").status_code == 204
        else:
            assert sender.post(f"/datasets/{upload['id']}/complete").status_code == 200
            fence = check(small, upload["id"])
            with small.database.write() as session:
                uploads.join(session, fence, upload["id"], sha256(CONTENT[: 2 * PART]))
            shutil.rmtree(small.settings.uploads / upload["id"])  # as the worker does
        yield data[0][PART // 2 :]

    if ends == "joined":
        assert [put(sender, upload, number, data[number - 1]).status_code for number in (1, 2)] == [200, 200]
    with httpx.Client(base_url=small.url, headers=sender.headers, timeout=60, trust_env=False) as second:
        headers = content_digest(data[0]) | {"Content-Length": str(PART)}
        answer = second.put(f"/datasets/{upload['id']}/parts/1", content=halves(), headers=headers)
    said(answer, status, code)


def test_what_has_another_digest_or_size_is_not_kept(small: Api, sender: httpx.Client):
    upload = begin(sender)
    wrong = put(sender, upload, 1, part(upload, 2), **content_digest(part(upload, 1)))
    assert sha256(part(upload, 2)) in said(wrong, 422, "digest_mismatch")["detail"]
    said(put(sender, upload, 1, b"short"), 422, "invalid_upload")
    said(put(sender, upload, 3, part(upload, 1)), 413, "body_too_large")
    said(put(sender, upload, 4, b"x"), 404, "not_found")
    problem = said(sender.put(f"/datasets/{upload['id']}/parts/1", content=b"x"), 422, "invalid_parameter")
    assert problem["errors"][0]["loc"] == ["header", "Content-Digest"]
    said(put(sender, upload, 1, part(upload, 1), **{"Content-Type": "text/plain"}), 415, "unsupported_media_type")
    said(put(sender, upload, 1, part(upload, 1), **{"Content-Encoding": "gzip"}), 415, "unsupported_media_type")
    assert left(small, upload) == []
    assert sender.get(f"/datasets/{upload['id']}").json()["missing"] == [1, 2, 3]
    single = begin(sender, b"one", digest=sha256(b"two"))
    said(put(sender, single, 1, b"one"), 422, "digest_mismatch")


def test_what_is_said_of_a_new_upload_is_checked(sender: httpx.Client):
    wrong = {
        "size": [{"size": 0}, {"size": 10 * PART + 1}, {"size": "1"}, {}],
        "options": [{"options": {"classes": ["a", "b\0"]}}],
        "name": [{"name": "a/b"}, {"name": "a b"}, {"name": ""}, {"name": "a@1"}],
        "digest": [{"digest": "md5:1"}],
        "file": [{"file": "../x"}, {"file": "a\0"}],
        "colour": [{"colour": "red"}],
    }
    for field, bodies in wrong.items():
        for body in bodies:
            given = {"name": "x", **({"size": 1} if field != "size" else {}), **body}
            problem = said(sender.post("/datasets", json=given), 422, "invalid_upload")
            assert [error["loc"][0] for error in problem["errors"]] == [field], body
    said(sender.post("/datasets", content=b"{", headers={"Content-Type": "application/json"}), 400, "malformed")
    for upload_id in ("ds_1", "mdl_01k2v9h3m4n5p6q7r8s9t0v1w2", "ds_01k2v9h3m4n5p6q7r8s9t0v1w2", "x"):
        said(sender.get(f"/datasets/{upload_id}"), 404, "not_found")


def test_what_was_begun_with_the_same_body_is_resumed(files_client: httpx.Client):
    body = {"name": "net", "size": 5, "file": "net.pt", "digest": sha256(b"bytes")}
    model = {"type": "mlp", "hidden": [4]}

    def ask(**changes: Any) -> tuple[int, int]:
        response = files_client.post("/models?resume=true", json=body | changes)
        return response.status_code, response.json()["version"]

    assert ask(options={"model": model}) == (201, 1)
    assert ask(options={"model": model}) == (200, 1)
    assert ask(options={"model": {**model, "hidden": [5]}}) == (201, 2)
    assert ask() == (201, 3)  # nothing said is not whatever was said
    assert ask() == ask(options={}) == (200, 3)
    assert ask(options={"model": model}) == (200, 1)
    assert [ask(file="other.pt"), ask(size=6), ask(digest=sha256(b"others"))] == [(201, 4), (201, 5), (201, 6)]
    assert [ask(digest=None), ask(digest=None)] == [(201, 7), (201, 8)]
    newest = files_client.get("/models?name=net").json()["data"]
    third = next(each for each in newest if each["version"] == 3)
    assert put(files_client, third, 1, b"bytes").status_code == 200
    assert ask() == (200, 3)
    assert files_client.post(f"/models/{third['id']}/complete").status_code == 200
    assert ask() == (201, 9)


def test_a_small_file_in_one_request(small: Api, sender: httpx.Client):
    query = {"name": "tiny", "file": "tiny.csv", "options": json.dumps({})}
    made = sender.post("/datasets/file", params=query, content=b"a,b", headers=content_digest(b"a,b"))
    assert made.status_code == 201, made.text
    upload = made.json()
    assert (upload["status"], upload["size"], upload["digest"]) == ("checking", 3, sha256(b"a,b"))
    assert len(left(small, upload)) == 1
    known = set(small.settings.uploads.iterdir())

    def refused(query: dict[str, str], data: bytes, digest: bytes) -> httpx.Response:
        return sender.post("/datasets/file", params=query, content=data, headers=content_digest(digest))

    said(refused(query, b"a,b", b"c"), 422, "digest_mismatch")
    said(refused(query, b"x" * (PART + 1), b"x"), 413, "body_too_large")
    said(refused(query, b"", b""), 422, "invalid_upload")
    faults: list[tuple[dict[str, str], list[list[str]]]] = [
        ({"options": "{"}, [["query", "options"]]),
        ({"options": '{"colour": 1}'}, [["query", "options", "colour"]]),
        ({"options": '{"test": 3}', "name": "a b"}, [["query", "name"], ["query", "options", "test"]]),
        ({"options": '{"classes": ["a", "b\\u0000"]}'}, [["query", "options"]]),
    ]
    for changes, locs in faults:
        problem = said(refused(query | changes, b"a", b"a"), 422, "invalid_upload")
        assert [error["loc"] for error in problem["errors"]] == locs
    assert [each for folder in set(small.settings.uploads.iterdir()) - known for each in folder.iterdir()] == []


def test_uploads_belong_to_their_owner(api: Api, owners: Any):
    with api.client(next(owners)) as mine, api.client(next(owners)) as theirs:
        upload = send_whole(mine, b"bytes")
        pass_check(api, upload["id"], {}, **{"page.png": b"x"})
        address = f"/datasets/{upload['id']}"
        assert theirs.get("/datasets").json()["data"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/complete"), ("GET", "/files/page.png")):
            said(theirs.request(method, address + path), 404, "not_found")
        said(put(theirs, upload, 1, b"bytes"), 404, "not_found")
        assert mine.get(address).json()["status"] == "ready"


def test_a_check_that_runs_ends_when_its_upload_is_deleted(api: Api, client: httpx.Client):
    upload = send_whole(client, b"bytes")
    fence = check(api, upload["id"])
    assert client.delete(f"/datasets/{upload['id']}").status_code == 204
    with pytest.raises(StaleAttemptError), api.database.write() as session:
        attempts.succeed(session, fence, {"profile": {}})
    assert not (api.settings.uploads / upload["id"]).exists()


@pytest.mark.parametrize("form", ["embedded", "deployed"])
def test_an_owner_has_so_many_bytes(form: str, open_settings: OpenSettings, tmp_path: Path):
    with open_settings(form, tmp_path) as settings:
        limited = settings.model_copy(update=with_owners(owner_upload_bytes=1000, min_free_bytes=0))
        with serving(limited) as api, api.client("owner-0") as alice, api.client("owner-1") as bob:
            first = begin(alice, b"x" * 600)
            problem = said(alice.post("/models", json={"name": "b", "size": 401}), 413, "upload_quota")
            assert "your uploads have 600 bytes, with these 401 they would have more than 1,000" in problem["detail"]
            data = b"y" * 401
            said(alice.post("/datasets/file?name=c", content=data, headers=content_digest(data)), 413, "upload_quota")
            assert not list(limited.uploads.glob("*/*"))
            begin(bob, b"x" * 1000)
            begin(alice, b"z" * 400, "models")
            assert alice.delete(f"/datasets/{first['id']}").status_code == 204
            with ThreadPoolExecutor(2) as pool:  # one of them fits
                both = list(pool.map(lambda n: alice.post("/datasets", json={"name": f"n{n}", "size": 600}), (1, 2)))
            assert sorted(each.status_code for each in both) == [201, 413]


def test_a_full_disk_refuses_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(embedded(tmp_path, min_free_bytes=2**62)) as api, api.client() as client:
        said(client.post("/datasets", json={"name": "x", "size": 1}), 507, "insufficient_storage")
        sent = client.post("/datasets/file?name=x", content=b"x", headers=content_digest(b"x"))
        said(sent, 507, "insufficient_storage")
    with serving(embedded(tmp_path, min_free_bytes=0, max_part_bytes=4 * 2**20)) as api, api.client() as client:
        content = b"x" * (4 * 2**20)
        upload = begin(client, content)
        write = receiving._File._write

        def fill(file: Any, data: bytes) -> None:
            if file.size >= 2**20:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(file, data)

        with monkeypatch.context() as patch:
            patch.setattr(receiving._File, "_write", fill)
            said(put(client, upload, 1, content), 507, "insufficient_storage")
            assert left(api, upload) == []
            assert api.service.pieces.held == 0
        assert put(client, upload, 1, content).json()["missing"] == []


def test_what_has_arrived_of_a_slow_part_is_on_disk_not_in_memory(small: Api, sender: httpx.Client):
    upload = begin(sender)
    slow = [head_of(sender, upload, number) for number in (1, 2, 3)]
    with contextlib.ExitStack() as stack:
        for head in slow:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", small.port), timeout=20))
            connection.sendall(head + b"x" * 1000)
        eventually(lambda: [path.stat().st_size for path in left(small, upload)] == [1000] * 3)
        eventually(lambda: small.service.pieces.held == 0)
    eventually(lambda: left(small, upload) == [])


def test_uploads_that_a_disk_keeps_waiting_keep_no_spec_away(
    small: Api, sender: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    upload = begin(sender)
    monkeypatch.setattr(small.service.pieces, "_most", 100)
    said(put(sender, upload, 1, part(upload, 1)), 503, "too_many_bodies")
    begin(sender)
    monkeypatch.undo()
    assert put(sender, upload, 1, part(upload, 1)).status_code == 200
    eventually(lambda: small.service.pieces.held == 0)


def test_a_part_that_stalls_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(receiving, "STALL_SECONDS", 0.3)
    values = with_owners(max_part_bytes=PART)
    with serving(embedded(tmp_path, **values)) as api, api.client("owner-0") as client:
        upload = begin(client)
        waited: Callable[[], bool] = lambda: api.service.pieces.held == 0 and left(api, upload) == []  # noqa: E731
        with socket.create_connection(("127.0.0.1", api.port), timeout=20) as connection:
            connection.sendall(head_of(client, upload, 1) + part(upload, 1)[:1000])
            answer = connection.recv(65_536).decode()
        assert answer.startswith("HTTP/1.1 408")
        assert "body_timeout" in answer
        eventually(waited)
