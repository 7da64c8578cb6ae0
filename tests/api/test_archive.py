"""All files of a job as one zip: the same bytes, made while they are sent."""

import io
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from api import archives, protocol
from storage.errors import BlobError
from storage.tables import Artifact
from tests.api.conftest import Api, eventually, said, submit
from tests.api.test_backpressure import MIB, Raw, key_of

FILES = {"student.onnx": bytes(range(256)) * 1000, "empty.bin": b"", "ä b.txt": "grün".encode()}


@pytest.fixture
def url(files_api: Api, files_client: httpx.Client) -> str:
    job_id = submit(files_client)["id"]
    files_api.succeed(files_api.claim(job_id), FILES)
    return f"/jobs/{job_id}/artifacts.zip"


def test_the_zip_holds_every_file_as_it_is(files_client: httpx.Client, url: str, tmp_path: Path):
    response = files_client.get(url)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["content-length"] == str(len(response.content))
    assert response.headers["content-disposition"] == f'attachment; filename="{url.split("/")[2]}.zip"'
    with zipfile.ZipFile(io.BytesIO(response.content)) as found:
        assert found.testzip() is None
        assert {name: found.read(name) for name in found.namelist()} == FILES
        assert found.namelist() == sorted(FILES)
        assert {info.compress_type for info in found.infolist()} == {zipfile.ZIP_STORED}
    path = tmp_path / "all.zip"
    path.write_bytes(response.content)
    for tool in (["unzip", "-tqq", str(path)], ["bsdtar", "-tf", str(path)]):
        try:
            subprocess.run(tool, check=True, capture_output=True, timeout=30)
        except FileNotFoundError:
            continue  # not every machine has it


def test_equal_files_make_equal_bytes_and_one_etag(files_api: Api, files_client: httpx.Client, url: str):
    job_id = submit(files_client)["id"]
    files_api.succeed(files_api.claim(job_id), dict(reversed(FILES.items())))
    first, other = files_client.get(url), files_client.get(f"/jobs/{job_id}/artifacts.zip")
    assert first.content == other.content
    assert first.headers["etag"] == other.headers["etag"]
    same = files_client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    job_id = submit(files_client)["id"]
    files_api.succeed(files_api.claim(job_id), FILES | {"empty.bin": b"1"})
    assert files_client.head(f"/jobs/{job_id}/artifacts.zip").headers["etag"] != first.headers["etag"]


def test_head_has_the_same_headers_and_no_body(files_client: httpx.Client, url: str):
    head, get = files_client.head(url), files_client.get(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "content-type", "content-disposition"):
        assert head.headers[name] == get.headers[name]


def test_a_job_without_files_has_an_empty_zip(files_client: httpx.Client):
    response = files_client.get(f"/jobs/{submit(files_client)['id']}/artifacts.zip")
    assert response.status_code == 200
    assert zipfile.ZipFile(io.BytesIO(response.content)).namelist() == []


def test_what_is_not_ones_own_is_not_there(files_api: Api, files_client: httpx.Client, owners: Iterator[str], url: str):
    with files_api.client(next(owners)) as other:
        said(other.get(url), 404, "not_found")
        assert other.head(url).status_code == 404
    with files_api.client() as nobody:
        said(nobody.get(url), 401, "unauthorized")
    said(files_client.get(f"{url}?all=1"), 422, "invalid_parameter")


def test_a_file_that_is_gone_is_said_before_anything_is_sent(files_api: Api, files_client: httpx.Client):
    job_id = submit(files_client)["id"]
    files_api.succeed(files_api.claim(job_id), {"a.bin": b"a file of its own"})
    (artifact,) = files_client.get(f"/jobs/{job_id}/artifacts").json()["data"]
    files_api.service.blobs.path(artifact["digest"], artifact["size"]).unlink()
    said(files_client.get(f"/jobs/{job_id}/artifacts.zip"), 500, "artifact_damaged")
    with pytest.raises(BlobError):
        files_api.service.blobs.path(artifact["digest"], artifact["size"])


def test_a_reader_that_stops_is_cut_off_and_others_are_served(
    files_api: Api, files_client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.4)
    job_id = submit(files_client)["id"]
    files_api.succeed(files_api.claim(job_id), {"large.bin": b"x" * 8 * MIB, "small.bin": b"y"})
    threads = threading.active_count()
    silent = Raw(files_api.port, f"GET /jobs/{job_id}/artifacts.zip", key=key_of(files_client))
    silent.send(b"\r\n")
    assert silent.socket.recv(4096)
    assert files_client.head(f"/jobs/{job_id}/artifacts.zip").status_code == 200
    eventually(lambda: open_files("large.bin", job_id, files_client) == 0)
    assert threading.active_count() <= threads + 1  # one of the pool's, which stays for the next
    assert len(silent.ends(5)) < 2 * MIB
    assert len(files_client.get(f"/jobs/{job_id}/artifacts.zip").content) > 8 * MIB


def open_files(name: str, job_id: str, client: httpx.Client) -> int:
    """How often this process, the server's too, has an artifact open."""
    found = client.get(f"/jobs/{job_id}/artifacts").json()["data"]
    (digest,) = [each["digest"] for each in found if each["name"] == name]
    return [Path(each.path).name for each in psutil.Process().open_files()].count(digest.removeprefix("sha256:"))


def listed(folder: Path, sizes: dict[str, int]) -> list[tuple[Artifact, Path]]:
    """Files of zeros, which take no room on disk."""
    found = []
    for name, size in sizes.items():
        path = folder / name
        with path.open("wb") as file:
            file.truncate(size)
        found.append((Artifact(name=name, size=size, digest=f"sha256:{size}"), path))
    return found


def test_the_size_is_known_beforehand_and_little_is_held(tmp_path: Path):
    files = listed(tmp_path, {"a": 0, "b": 1, "ü" * 40: 65_536, "c": 20_000_000})
    chunks = [len(chunk) for chunk in archives.archive(files)]
    assert sum(chunks) == archives.archive_size([(artifact.name, artifact.size) for artifact, _ in files])
    assert max(chunks) < archives.CHUNK + 1024


def test_the_size_is_right_where_64_bits_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the limits lowered, since 4 GiB take their time."""
    for module, name in ((zipfile, "ZIP64_LIMIT"), (archives, "LIMIT")):
        monkeypatch.setattr(module, name, 100_000)
    for sizes in ({"a": 100_001}, {"a": 99_000, "b": 5_000, "c": 1}, {"a": 200_000, "b": 200_000, "c": 7}):
        files = listed(tmp_path, sizes)
        content = b"".join(archives.archive(files))
        assert len(content) == archives.archive_size(list(sizes.items())), sizes
        with zipfile.ZipFile(io.BytesIO(content)) as found:
            assert {info.filename: info.file_size for info in found.infolist()} == sizes


def test_a_reader_that_leaves_closes_the_file(tmp_path: Path):
    stream = archives.archive(listed(tmp_path, {"a": 1_000_000}))
    next(stream)
    opened = [each.path for each in psutil.Process().open_files()]
    assert str(tmp_path / "a") in opened
    stream.close()
    assert str(tmp_path / "a") not in [each.path for each in psutil.Process().open_files()]
