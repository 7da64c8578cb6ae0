"""The files of a job."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from api import schemas
from api.archives import serve_archive
from api.auth import OwnerDep
from api.downloads import serve_file
from api.openapi import problems
from api.service import JobIdDep, Service, ServiceDep
from api.views import address
from storage.errors import NotFoundError
from storage.queries import get_artifact, get_job, list_artifacts

router = APIRouter(prefix="/jobs/{job_id}", tags=["artifacts"], responses=problems(404))

Name = Annotated[str, Path(description="The file's name.", examples=["student.onnx"])]
HEADERS = {
    "ETag": {"schema": {"type": "string"}, "description": "The digest."},
    "Repr-Digest": {"schema": {"type": "string"}, "description": "SHA-256 of the whole file (RFC 9530)."},
    "Accept-Ranges": {"schema": {"type": "string"}},
    "Content-Disposition": {"schema": {"type": "string"}},
}
CONDITIONS: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": text}
        for name, text in {
            "Range": "One range of bytes, as `bytes=0-99`; several are answered whole.",
            "If-Range": "An ETag: the range counts only where the file still has it.",
            "If-None-Match": "An ETag: 304 where the file still has it.",
        }.items()
    ]
}
BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
WHOLE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": BYTES, "headers": HEADERS},
    206: {"description": "The range asked for.", "content": BYTES, "headers": HEADERS},
    304: {"description": "You have it already."},
    **problems(416),
}
HEAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "The headers that GET would have.", "headers": HEADERS},
    304: {"description": "You have it already."},
}
ZIP_HEADERS = {
    "ETag": {"schema": {"type": "string"}, "description": "Of all names and digests."},
    "Content-Length": {
        "schema": {"type": "integer"},
        "description": "Of the whole zip; less came where it broke off.",
    },
    "Content-Disposition": HEADERS["Content-Disposition"],
}
ZIP: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The zip.",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        "headers": ZIP_HEADERS,
    },
    304: {"description": "You have it already."},
}
ZIP_HEAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "The headers that GET would have.", "headers": ZIP_HEADERS},
    304: {"description": "You have it already."},
}
IF_NONE_MATCH: dict[str, Any] = {"parameters": CONDITIONS["parameters"][-1:]}


@router.get("/artifacts", summary="The files of a job")
def get_artifacts(request: Request, service: ServiceDep, owner: OwnerDep, job_id: JobIdDep) -> schemas.ArtifactList:
    """Empty until the job has succeeded."""
    with service.database.read() as session:
        get_job(session, job_id, owner)
        found = list_artifacts(session, job_id)
    data = [
        schemas.Artifact(
            name=artifact.name,
            size=artifact.size,
            digest=artifact.digest,
            media_type=artifact.media_type,
            created_at=artifact.created_at,
            url=address(request, job_id, "artifacts", artifact.name),
        )
        for artifact in found
    ]
    return schemas.ArtifactList(data=data)


@router.get(
    "/artifacts.zip",
    summary="Download all files as one zip",
    response_class=Response,
    responses=ZIP,
    openapi_extra=IF_NONE_MATCH,
)
def download_artifacts(request: Request, service: ServiceDep, owner: OwnerDep, job_id: JobIdDep) -> Response:
    """Stored, not compressed, and empty until the job has succeeded; `If-None-Match` takes its ETag."""
    return _serve_all(request, service, owner, job_id)


@router.head("/artifacts.zip", summary="What the zip would bring", response_class=Response, responses=ZIP_HEAD)
def head_artifacts(request: Request, service: ServiceDep, owner: OwnerDep, job_id: JobIdDep) -> Response:
    return _serve_all(request, service, owner, job_id)


def _serve_all(request: Request, service: Service, owner: str, job_id: str) -> Response:
    with service.database.read() as session:
        get_job(session, job_id, owner)
        found = list_artifacts(session, job_id)
    files = [(artifact, service.blobs.path(artifact.digest, artifact.size)) for artifact in found]
    return serve_archive(request, job_id, files)


@router.get(
    "/artifacts/{name}",
    summary="Download a file",
    response_class=Response,
    responses=WHOLE,
    openapi_extra=CONDITIONS,
)
def download_artifact(request: Request, service: ServiceDep, owner: OwnerDep, job_id: JobIdDep, name: Name) -> Response:
    """Its bytes, or one `Range` of them; `If-Range` and `If-None-Match` take its ETag."""
    return _serve(request, service, owner, job_id, name)


@router.head("/artifacts/{name}", summary="What a download would bring", response_class=Response, responses=HEAD)
def head_artifact(request: Request, service: ServiceDep, owner: OwnerDep, job_id: JobIdDep, name: Name) -> Response:
    return _serve(request, service, owner, job_id, name)


def _serve(request: Request, service: Service, owner: str, job_id: str, name: str) -> Response:
    if not name.isprintable():
        raise NotFoundError(f"{job_id} has no artifact of this name")
    with service.database.read() as session:
        get_job(session, job_id, owner)
        artifact = get_artifact(session, job_id, name)
    return serve_file(request, service.blobs.path(artifact.digest, artifact.size), artifact)
