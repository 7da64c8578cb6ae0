"""Who asks: API keys, compared in constant time."""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from api.problems import UnauthorizedError

LOCAL = "local"
"""The owner of everything where no keys are configured."""

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    description="One of the service's API keys. Not needed where the service has none.",
)


async def authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> None:
    """See whose key came with the request, for `OwnerDep`.

    Raises:
        UnauthorizedError: no key, or none of ours.
    """
    request.state.owner = _owner_of(request.app.state.service.settings.api_keys, credentials)


def _owner_of(keys: Mapping[str, SecretStr], credentials: HTTPAuthorizationCredentials | None) -> str:
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


async def _owner(request: Request) -> str:
    owner: str = request.state.owner  # an AttributeError in a route that no key guards
    return owner


OwnerDep = Annotated[str, Depends(_owner)]
