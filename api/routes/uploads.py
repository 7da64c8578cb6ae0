"""Datasets and models: uploaded whole or in parts, listed, shown, deleted. One set of routes for both kinds."""

import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from api import upload_schemas as schemas
from api import uploads, views
from api.auth import OwnerDep
from api.bodies import BodyDep
from api.cursors import make_cursor, read_cursor
from api.downloads import serve_file
from api.new_uploads import KINDS, Kind, read_new, read_options
from api.openapi import ETAG, bytes_body, new_body, problems
from api.receiving import read_digest, receive
from api.routes.artifacts import CONDITIONS, WHOLE
from api.service import Service, ServiceDep
from api.streams import wait_for_change
from storage.errors import NotFoundError
from storage.ids import new_id
from storage.queries import get_artifact
from storage.uploads import UploadStatus, get_upload, page_uploads

ContentDigest = Annotated[
    str,
    Header(
        alias="Content-Digest",
        pattern=r"^sha-256=:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=:$",
        description="SHA-256 of this request's body (RFC 9530): `sha-256=:<base64>:`.",
        examples=["sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"],
    ),
]
Number = Annotated[int, Path(ge=1, le=2**31 - 1, description="The part's number, from 1.", examples=[1])]
Wait = Annotated[
    float, Query(ge=0, le=60, allow_inf_nan=False, description="Seconds to wait for the check.", examples=[30])
]
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", description="An ETag: 304 where it is as it was.")]
LOCATION = {"Location": {"schema": {"type": "string"}, "description": "Where the upload is."}}
TAGGED: dict[int | str, dict[str, Any]] = {200: {"headers": ETAG}}
CREATED: dict[int | str, dict[str, Any]] = {201: {"headers": LOCATION | ETAG}}


async def _kind(request: Request) -> Kind:
    """By the route: what is said of both kinds is written once."""
    return KINDS[request.scope["route"].path.split("/")[1]]


KindDep = Annotated[Kind, Depends(_kind)]


async def _upload_id(
    kind: KindDep,
    upload_id: Annotated[str, Path(description="The upload's id.", examples=["ds_01k2v9h3m4n5p6q7r8s9t0v1w2"])],
) -> str:
    return kind.check_id(upload_id)


UploadIdDep = Annotated[str, Depends(_upload_id)]


async def create(
    request: Request,
    service: ServiceDep,
    owner: OwnerDep,
    kind: KindDep,
    body: BodyDep,
    resume: Annotated[bool, Query(description="Whether one that was begun with the same body will do.")] = False,
) -> Response:
    """The answer says into how many parts of which size the file is cut; the last one is what is left.
    With `resume`, 200 with an upload that is not complete and of which the same was said, its `digest` included."""
    upload, is_new = await run_in_threadpool(uploads.begin, service, owner, kind, body, resume)
    return _answer(request, kind, upload, status=201 if is_new else 200)


async def send(
    request: Request,
    service: ServiceDep,
    owner: OwnerDep,
    kind: KindDep,
    content_digest: ContentDigest,
    name: Annotated[str, Query(description="The next version of this name.", examples=["flowers"])],
    file: Annotated[str, Query(description="The file's name.")] = "",
    options: Annotated[str, Query(description="As of `POST` without `/file`, as JSON.", examples=["{}"])] = "{}",
) -> Response:
    """The body is the file, of at most `max_part_bytes`; its check is queued at once."""
    said = {"name": name, "file": file, "options": read_options(options), "size": 1}
    read_new(kind, said, 1, where=("query",))  # before the bytes are read
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isdecimal() and len(length) < 16 else 1
    await run_in_threadpool(uploads.check_room, service, owner, announced)
    upload_id, digest = new_id(kind.prefix), read_digest(content_digest)
    path = uploads.part_path(service, upload_id, 1)
    size = await receive(request, service, path, digest)
    new = read_new(kind, said | {"size": size, "digest": digest}, size)
    upload = await run_in_threadpool(uploads.accept_file, service, owner, kind, upload_id, new, path, digest)
    return _answer(request, kind, upload, status=201, background=_ring(service))


async def put_part(
    request: Request,
    service: ServiceDep,
    owner: OwnerDep,
    kind: KindDep,
    upload_id: UploadIdDep,
    number: Number,
    content_digest: ContentDigest,
) -> Response:
    """In any order, several at once, again where an answer was lost: the newest counts. Once it is answered, it is
    safe on disk. What does not arrive whole, or with another digest, is not kept."""
    digest = read_digest(content_digest)
    expected = (service, owner, kind, upload_id, number, digest)
    size = await run_in_threadpool(uploads.expect_part, *expected)
    path = uploads.part_path(service, upload_id, number)
    try:
        await receive(request, service, path, digest, size=size)
    except FileNotFoundError:
        await run_in_threadpool(uploads.expect_part, *expected)  # says whether it was deleted, or joined
        raise
    kept = (service, owner, kind, upload_id, number, path, size, digest)
    return _answer(request, kind, await run_in_threadpool(uploads.keep_part, *kept))


def complete(request: Request, service: ServiceDep, owner: OwnerDep, kind: KindDep, upload_id: UploadIdDep) -> Response:
    """A worker joins the parts, compares the digest and checks what it is. A failed one is checked again."""
    upload = uploads.finish(service, owner, kind, upload_id)
    return _answer(request, kind, upload, background=_ring(service))


def list_uploads(
    service: ServiceDep,
    owner: OwnerDep,
    kind: KindDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[str | None, Query(description="The `next` of the page before.")] = None,
    status: Annotated[UploadStatus | None, Query(description="Only of this status.")] = None,
    name: Annotated[str | None, Query(description="Only of this name.")] = None,
) -> schemas.UploadPage:
    """Uploads in a list leave out `options`, `profile`, `files` and their parts."""
    question = (kind.name, owner, status, name)
    last = read_cursor(after, question) if after is not None else None
    with service.database.read() as session:
        found, more = page_uploads(session, kind.name, owner, limit=limit, after=last, status=status, name=name)
        data = [schemas.UploadSummary(**uploads.summarise(each)) for each in found]
    return schemas.UploadPage(data=data, has_more=more, next=make_cursor(data[-1].id, question) if more else None)


async def get(
    request: Request,
    service: ServiceDep,
    owner: OwnerDep,
    kind: KindDep,
    upload_id: UploadIdDep,
    wait: Wait = 0,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """With `wait`, answers once it is checked, or when the time is over."""
    upload = await run_in_threadpool(uploads.show, service, owner, kind, upload_id)
    if wait > 0 and upload.status == UploadStatus.CHECKING:
        await _wait_for_check(request, service, owner, kind, upload_id, wait)
        upload = await run_in_threadpool(uploads.show, service, owner, kind, upload_id)
    response = _answer(request, kind, upload)
    if views.matches(if_none_match, response.headers["ETag"]):
        return Response(status_code=304, headers={"ETag": response.headers["ETag"]})
    return response


def delete(service: ServiceDep, owner: OwnerDep, kind: KindDep, upload_id: UploadIdDep) -> Response:
    """Whatever its status; a check that runs is ended. Not while a job that has not ended reads it."""
    uploads.drop(service, owner, kind, upload_id)
    return Response(status_code=204)


def download(
    request: Request,
    service: ServiceDep,
    owner: OwnerDep,
    kind: KindDep,
    upload_id: UploadIdDep,
    name: Annotated[str, Path(description="The file's name.", examples=["thumbnails.png"])],
) -> Response:
    """A page of thumbnails or rows, for example: `files` of the upload names them."""
    with service.database.read() as session:
        check = get_upload(session, kind.name, upload_id, owner).check
        if check is None or not name.isprintable():
            raise NotFoundError(f"{upload_id} has no file of this name")
        artifact = get_artifact(session, check.id, name)
    return serve_file(request, service.blobs.path(artifact.digest, artifact.size), artifact)


SENT = problems(400, 408, 413, 415, 507)
UPLOAD: dict[str, Any] = {"response_model": schemas.Upload}
MADE: dict[str, Any] = UPLOAD | {"status_code": 201, "responses": CREATED | SENT}
BEGUN: dict[str, Any] = MADE | {
    "responses": CREATED | SENT | {200: {"model": schemas.Upload, "description": "It was begun earlier."} | TAGGED[200]}
}
PART: dict[str, Any] = UPLOAD | {"responses": TAGGED | SENT | problems(404, 409)}
SHOWN: dict[str, Any] = UPLOAD | {
    "responses": TAGGED | {304: {"description": "It is as you have it."}} | problems(404),
}
FILE: dict[str, Any] = {"response_class": Response, "responses": WHOLE | problems(404), "openapi_extra": CONDITIONS}
GONE: dict[str, Any] = {"status_code": 204, "responses": problems(404, 409)}
ROUTES: list[tuple[str, str, Callable[..., Any], str, str, dict[str, Any]]] = [
    ("POST", "/file", send, "send_{one}", "Upload a small {one} in one request", MADE | bytes_body("The file.")),
    ("PUT", "/{upload_id}/parts/{number}", put_part, "put_{one}_part", "Send a part", PART | bytes_body("Its bytes.")),
    ("POST", "/{upload_id}/complete", complete, "complete_{one}", "Say that all parts are there",
     UPLOAD | {"responses": TAGGED | problems(404, 409)}),
    ("GET", "", list_uploads, "list_uploaded_{many}", "List {many}, newest first", {}),
    ("GET", "/{upload_id}", get, "get_{one}", "Show a {one}", SHOWN),
    ("DELETE", "/{upload_id}", delete, "delete_{one}", "Delete a {one}", GONE),
    ("GET", "/{upload_id}/files/{name}", download, "download_{one}_file", "Download what the check wrote", FILE),
]  # fmt: skip
"""Method, path, function, name, summary, and what else FastAPI is told."""


def make_router(kind: Kind) -> APIRouter:
    """The routes of one kind."""
    names = {"one": kind.name, "many": kind.plural}
    router = APIRouter(prefix=f"/{kind.plural}", tags=[kind.plural])
    begin = ("POST", "", create, "create_{one}", "Begin to upload a {one}", BEGUN | new_body(kind.new, kind.example))
    for method, path, endpoint, name, summary, options in [begin, *ROUTES]:
        texts = {"name": name.format(**names), "summary": summary.format(**names)}
        router.add_api_route(path, endpoint, methods=[method], **(texts | options))
    return router


async def _wait_for_check(
    request: Request, service: Service, owner: str, kind: Kind, upload_id: str, seconds: float
) -> None:
    end = time.monotonic() + seconds

    def look() -> tuple[str, tuple[Any, ...] | None]:
        with service.database.read() as session:
            found = get_upload(session, kind.name, upload_id, owner)
        check = found.check
        checking = check is not None and found.status == UploadStatus.CHECKING
        return (check.id, (check.status, check.stage, check.request)) if check and checking else ("", None)

    check_id, seen = await run_in_threadpool(look)
    if seen is None:
        return
    with service.watcher.watching(check_id) as watch:
        while seen is not None and (left := end - time.monotonic()) > 0:
            await wait_for_change(request, watch, seen, left)
            _, seen = await run_in_threadpool(look)


def _ring(service: Service) -> BackgroundTask:
    return BackgroundTask(service.doorbell.ring, "cpu")


def _answer(
    request: Request,
    kind: Kind,
    upload: schemas.Upload,
    status: int = 200,
    background: BackgroundTask | None = None,
) -> Response:
    where = f"{request.scope.get('root_path', '')}/{kind.plural}/{upload.id}"
    headers = {"Location": where} if status == 201 else {}
    return views.answer(views.Document.of(upload), status=status, headers=headers, background=background)


routers = [make_router(kind) for kind in KINDS.values()]
