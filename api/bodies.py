"""A spec as it arrives: JSON or YAML, bounded in bytes and in time, and so are all that arrive at once."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from api.budget import Bodies
from api.problems import BodyTimeoutError, BodyTooLargeError, ContentTypeError, MalformedError
from api.service import ServiceDep
from kdcore.document import read_document, read_json

JSON = ("application/json",)
YAML = ("application/yaml", "text/yaml", "application/x-yaml")
CHARSET = re.compile(r""";\s*charset\b[^=;]*=\s*"?([^\s;"]*)""", re.IGNORECASE)
BODY_SECONDS = 60.0


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


async def read_body(request: Request, service: ServiceDep) -> AsyncIterator[Body]:
    """Read the whole body, but no more of it than is allowed; its bytes count until the request is answered.

    Raises:
        ContentTypeError: neither JSON nor YAML.
        BodyTooLargeError: by its Content-Length, or by what arrived.
        BodyTimeoutError: it took too long to arrive.
        TooManyBodiesError: those of other requests take all the memory there is for them.
        MalformedError: it is empty.
    """
    is_json = _is_json(request)
    most = service.settings.max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise _too_large(most)
    data = bytearray()
    try:
        await _receive(request, data, service.bodies, most)
        if not data.strip():
            raise MalformedError("the body is empty; send the spec")
        yield Body(bytes(data), is_json)
    finally:
        service.bodies.give_back(len(data))


async def _receive(request: Request, data: bytearray, bodies: Bodies, most: int) -> None:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                if len(data) + len(chunk) > most:
                    raise _too_large(most)
                bodies.take(len(chunk))
                data += chunk
    except TimeoutError:
        late = f"the body took longer than {BODY_SECONDS:g} s to arrive"
        raise BodyTimeoutError(late, headers={"Connection": "close"}) from None


def _is_json(request: Request) -> bool:
    type, _, parameters = request.headers.get("content-type", "").partition(";")
    type = type.strip().lower()
    charset = CHARSET.search(f";{parameters}")
    if type not in JSON + YAML:
        raise ContentTypeError(
            f"the spec's Content-Type must be {JSON[0]} or {YAML[0]}", headers={"Accept": ", ".join(JSON + YAML)}
        )
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise ContentTypeError("the spec must be in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ContentTypeError("the spec must not be compressed", headers={"Accept-Encoding": "identity"})
    return type in JSON


def _too_large(most: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {most} bytes", headers={"Connection": "close"})


BodyDep = Annotated[Body, Depends(read_body)]
