"""A spec as it arrives: JSON or YAML, bounded in bytes."""

from dataclasses import dataclass
from email.message import Message
from typing import Annotated, Any

from fastapi import Depends, Request

from api.problems import BodyTooLargeError, ContentTypeError, MalformedError
from api.service import ServiceDep
from kdcore.document import read_document, read_json

JSON = ("application/json",)
YAML = ("application/yaml", "text/yaml", "application/x-yaml")


@dataclass(frozen=True)
class Body:
    """A request's body, unparsed: parsing belongs off the event loop."""

    data: bytes
    is_json: bool

    def parse(self) -> Any:
        """The document.

        Raises:
            DocumentError: it cannot be read.
        """
        return read_json(self.data) if self.is_json else read_document(self.data)


async def read_body(request: Request, service: ServiceDep) -> Body:
    """Read the whole body, but no more of it than is allowed.

    Raises:
        ContentTypeError: neither JSON nor YAML.
        BodyTooLargeError: by its Content-Length, or by what arrived.
        MalformedError: it is empty.
    """
    is_json = _is_json(request)
    most = service.settings.max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise _too_large(most)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise _too_large(most)
    if not data.strip():
        raise MalformedError("the body is empty; send the spec")
    return Body(bytes(data), is_json)


def _is_json(request: Request) -> bool:
    header = Message()
    header["content-type"] = request.headers.get("content-type", "none/none")
    type = header.get_content_type()
    if type not in JSON + YAML:
        raise ContentTypeError(
            f"the spec's Content-Type must be {JSON[0]} or {YAML[0]}", headers={"Accept": ", ".join(JSON + YAML)}
        )
    if str(header.get_param("charset", "utf-8")).lower() not in ("utf-8", "utf8", "us-ascii"):
        raise ContentTypeError("the spec must be in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ContentTypeError("the spec must not be compressed", headers={"Accept-Encoding": "identity"})
    return type in JSON


def _too_large(most: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {most} bytes", headers={"Connection": "close"})


BodyDep = Annotated[Body, Depends(read_body)]
