"""Who asks: API keys, compared in constant time."""

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.problems import UnauthorizedError
from api.service import ServiceDep

LOCAL = "local"
"""The owner of everything where no keys are configured."""

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    description="One of the service's API keys. Not needed where the service has none.",
)


async def authenticate(
    service: ServiceDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> str:
    """The owner whose key came with the request.

    Raises:
        UnauthorizedError: no key, or none of ours.
    """
    keys = service.settings.api_keys
    if not keys:
        return LOCAL
    given = _digest(credentials.credentials if credentials is not None else "")
    found = None
    for owner, key in keys.items():  # all of them, so that the time tells nothing
        if hmac.compare_digest(given, _digest(key.get_secret_value())):
            found = owner
    if found is None or credentials is None:
        raise UnauthorizedError(
            "send one of the service's API keys as `Authorization: Bearer <key>`",
            headers={"WWW-Authenticate": 'Bearer realm="distillery"'},
        )
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


OwnerDep = Annotated[str, Depends(authenticate)]
