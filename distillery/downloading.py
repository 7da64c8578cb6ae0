"""Artifacts on disk: resumed after a broken connection, checked against their digest, complete or absent."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from distillery.errors import ApiError, DownloadFailed
from distillery.sending import TRIES, Sender

READ_SECONDS = 60.0


def fetch(sender: Sender, job_id: str, artifact: Mapping[str, Any], folder: Path) -> Path:
    """Download one artifact; a file that is there already and has the right digest stays.

    Args:
        artifact: its `name`, `digest` (`sha256:<hex>`) and `size` as the service lists them.

    Raises:
        DownloadFailed: it did not arrive whole.
        ApiError, ConnectionFailed: as ever.
    """
    name, digest, size = str(artifact["name"]), str(artifact["digest"]), int(artifact["size"])
    if Path(name).name != name or name.startswith("."):
        raise DownloadFailed(f"the service names an artifact {name!r}, which is no plain file name")
    final = folder / name
    if final.is_file() and _digest(final) == digest:
        return final
    part = folder / f".{name}.{digest.removeprefix('sha256:')[:16]}.part"
    _fill(sender, f"/jobs/{job_id}/artifacts/{name}", part, size)
    if _digest(part) != digest:
        part.unlink()
        raise DownloadFailed(f"{name} arrived with other bytes than its digest says")
    os.replace(part, final)
    return final


def _fill(sender: Sender, path: str, part: Path, size: int) -> None:
    """Bring `part` to its full size, going on where it ends, as long as each try gets anywhere."""
    fruitless = 0
    while (there := _size(part)) != size:
        if there > size:
            part.unlink()
            raise DownloadFailed(f"{path} sends more than the {size} bytes it announced")
        problem: Exception | None = None
        try:
            _append(sender, path, part, max(there, 0))
        except httpx.TransportError as error:
            problem = error
        except ApiError as error:
            if error.status != 503:
                raise
            problem = error
        fruitless = 0 if _size(part) > there else fruitless + 1
        if fruitless >= TRIES:
            raise sender.failed(problem or ConnectionError(f"{path} stops at {there} of {size} bytes"))
        if fruitless:
            sender.pause(fruitless)


def _size(path: Path) -> int:
    """Of a file, in bytes; -1 where there is none."""
    return path.stat().st_size if path.exists() else -1


def _append(sender: Sender, path: str, part: Path, there: int) -> None:
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
    with sender.stream(path, headers, READ_SECONDS) as response:
        resumed = response.status_code == 206
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
