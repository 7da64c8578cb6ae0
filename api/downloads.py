"""Serving a published file: whole or one range of it, revalidated by its digest."""

import base64
import re
from email.utils import formatdate
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from api.problems import RangeError
from api.views import matches
from storage.tables import Artifact

RANGE = re.compile(r"bytes=[ \t]*(\d{0,99})-(\d{0,99})[ \t]*", re.IGNORECASE)


def serve_file(request: Request, path: Path, artifact: Artifact) -> Response:
    """The response to GET or HEAD.

    Raises:
        RangeError: the range begins behind the end.
    """
    etag = f'"{artifact.digest}"'
    headers = {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(artifact.digest.removeprefix('sha256:'))).decode()}:",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Last-Modified": formatdate(artifact.created_at, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if not _wants_part(request, etag, artifact.size):
        # What asks for no range of ours is answered whole (RFC 9110, 14.2); FileResponse would refuse some.
        request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
    return FileResponse(path, headers=headers, media_type=artifact.media_type, filename=artifact.name)


def _wants_part(request: Request, etag: str, size: int) -> bool:
    """Whether the answer is one range; several at once, and what is no range, are answered whole."""
    wanted = RANGE.fullmatch(request.headers.get("range", ""))
    if request.method != "GET" or wanted is None or request.headers.get("if-range", etag) != etag:
        return False
    first, last = wanted.groups()
    if not (first or last) or (first and last and int(last) < int(first)):
        return False
    begins_behind = int(first) >= size if first else int(last) == 0 or size == 0
    if begins_behind:
        raise RangeError(f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return True
