"""Datasets and models on their way to the service: in parts, resumed where an upload was cut, then checked."""

import base64
import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from distillery.errors import ApiError, UploadFailed
from distillery.sending import Sender

LONGEST_WAIT = 30.0
READ_AT_ONCE = 1 << 20
RESENT = 3
"""Times that what arrived with other bytes is sent again."""
MISMATCH = "digest_mismatch"
"""What a check says of parts that make another file, which may be sent again."""

Upload: TypeAlias = dict[str, Any]
"""A dataset or model as the service shows it: `id`, `name`, `version`, `status`, `profile`, `error`, …"""


class Uploads:
    """The datasets, or the models, of one owner: `client.datasets` and `client.models`."""

    def __init__(self, sender: Sender, address: str, timeout: float) -> None:
        self._sender, self._address, self._timeout = sender, address, timeout

    def upload(
        self, path: str | Path, name: str | None = None, *, options: Mapping[str, Any] | None = None, wait: bool = True
    ) -> Upload:
        """Send a file and have it checked. Called again after it was cut, it sends only what is missing.

        What arrives with other bytes is sent again, `RESENT` times at most: a part, or all of them where the check
        finds that together they make another file than this one.

        Args:
            name: a new version of it is made; the file's name without its ending where left out.
            options: what is known of the file that its bytes do not say.
            wait: until it is checked.

        Raises:
            UploadFailed: it cannot be used; says why.
            ApiError: the service refused it; `digest_mismatch` where other bytes arrived, however often it was sent.
        """
        file = Path(path)
        digest, size = file_digest(file)
        new = {"name": name or _name(file), "file": file.name, "size": size, "digest": digest}
        upload = self._post("", params={"resume": "true"}, json={**new, "options": dict(options or {})})
        for sent in range(1 + RESENT):
            self._send_parts(file, upload)
            upload = self._post(f"/{upload['id']}/complete")
            if not wait:
                return upload
            upload = self.wait(upload["id"], check=False)
            if _error(upload) != MISMATCH or sent == RESENT or file_digest(file) != (digest, size):
                break
        if upload["status"] != "ready":
            raise UploadFailed(upload)
        return upload

    def _send_parts(self, file: Path, upload: Upload) -> None:
        """Those that are missing; all of them where they are those of another file."""
        missing = range(1, upload["parts"] + 1) if _error(upload) == MISMATCH else upload["missing"]
        with file.open("rb") as reader:
            while missing:
                for number in missing:
                    upload = self._put(upload["id"], number, _part(reader, number, upload["part_size"]))
                missing = upload["missing"]

    def wait(self, upload_id: str, timeout: float | None = None, check: bool = True) -> Upload:
        """The upload once it was checked.

        Args:
            timeout: seconds after which to give up; none: never.
            check: whether one that cannot be used is an error.

        Raises:
            UploadFailed: it cannot be used.
            TimeoutError: it is not checked in time.
        """
        end = time.monotonic() + timeout if timeout is not None else None
        while True:
            left = LONGEST_WAIT if end is None else max(0.0, min(LONGEST_WAIT, end - time.monotonic()))
            options = {"params": {"wait": f"{left:.3f}"}, "timeout": left + self._timeout}
            upload = self._send("GET", f"/{upload_id}", **options)
            if upload["status"] != "checking":
                if check and upload["status"] != "ready":
                    raise UploadFailed(upload)
                return upload
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"{upload_id} is still being checked after {timeout:g} s")

    def get(self, upload_id: str) -> Upload:
        """An upload as it is now."""
        return self._send("GET", f"/{upload_id}")

    def list(self, *, status: str | None = None, name: str | None = None, page_size: int = 50) -> Iterator[Upload]:
        """Uploads, newest first; pages are fetched as they are needed."""
        query = {key: value for key, value in {"status": status, "name": name, "limit": page_size}.items() if value}
        while True:
            page = self._send("GET", "", params=query)
            yield from page["data"]
            if not page["has_more"]:
                return
            query["after"] = page["next"]

    def delete(self, upload_id: str) -> None:
        """Delete an upload; not while a job that has not ended reads it."""
        self._sender.send("DELETE", f"{self._address}/{upload_id}", again=False)

    def file(self, upload_id: str, name: str) -> bytes:
        """A file that the check wrote: a page of thumbnails, for example."""
        return self._sender.send("GET", f"{self._address}/{upload_id}/files/{name}", again=True).content

    def _put(self, upload_id: str, number: int, data: bytes) -> Upload:
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        headers = {"Content-Digest": f"sha-256=:{digest}:", "Content-Type": "application/octet-stream"}
        for sent in range(RESENT):
            try:
                return self._send("PUT", f"/{upload_id}/parts/{number}", content=data, headers=headers)
            except ApiError as error:
                if error.code != MISMATCH:
                    raise
                self._sender.pause(1 + sent)  # nothing of it was kept: it changed on its way
        return self._send("PUT", f"/{upload_id}/parts/{number}", content=data, headers=headers)

    def _post(self, path: str, **options: Any) -> Upload:
        return self._send("POST", path, **options)

    def _send(self, method: str, path: str, **options: Any) -> Upload:
        """All of these may be sent twice."""
        found: Upload = self._sender.send(method, self._address + path, again=True, **options).json()
        return found


def _error(upload: Upload) -> str | None:
    """The code of what a check found."""
    return (upload.get("error") or {}).get("code")


def _name(file: Path) -> str:
    """What the service takes for a name: `my flowers.tar.gz` becomes `my-flowers`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem.removesuffix(".tar")).strip("._-")[:100] or "upload"


def file_digest(file: Path) -> tuple[str, int]:
    """A file's digest as `sha256:<hex>`, and its size in bytes; read piece by piece."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as reader:
        while chunk := reader.read(READ_AT_ONCE):
            digest.update(chunk)
            size += len(chunk)
    return f"sha256:{digest.hexdigest()}", size


def _part(reader: Any, number: int, size: int) -> bytes:
    reader.seek((number - 1) * size)
    data: bytes = reader.read(size)
    return data
