"""Which addresses of teachers the operator allows, and which of them hear which secret."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr, field_validator, model_validator


class TeacherSecret(BaseModel):
    """A bearer token and the address that may hear it; a token alone is for every address that is allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    token: SecretStr
    url: str | None = None
    """As an entry of `teacher_urls`."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, given: Any) -> Any:
        return {"token": given} if isinstance(given, (str, SecretStr)) else given

    @field_validator("token")
    @classmethod
    def _one_word(cls, token: SecretStr) -> SecretStr:
        """A client that cannot send a header quotes it."""
        if not re.fullmatch("[!-~]+", token.get_secret_value()):
            raise ValueError("a token is ASCII without spaces")
        return token

    @field_validator("url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        return url if url is None else address(url)

    def is_for(self, url: str) -> bool:
        """Whether it may be sent to this address, which is one of those that are allowed."""
        return self.url is None or is_allowed(url, [self.url])


def address(url: str) -> str:
    """The address, if it can be one of `teacher_urls`.

    Raises:
        ValueError: it cannot.
    """
    try:
        known = re.match(r"https?://[A-Za-z0-9.\[\]:-]+/", url) and urlsplit(url).port != 0
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"{url!r} is no address such as https://models.internal/v1/")
    return url


def is_allowed(url: str, allowed: Sequence[str]) -> bool:
    """Whether the address is one of those, or lies below one that ends in a slash: same scheme, host and port.

    Nothing that a client might read otherwise: no user's name, no dots or escapes that lead elsewhere.
    """
    try:
        asked = urlsplit(url)
        port = asked.port
    except ValueError:
        return False
    path = asked.path
    strange = asked.username is not None or "\\" in url or "%" in path or "//" in path or "/." in path or asked.fragment
    if strange or asked.scheme not in ("http", "https") or not asked.hostname:
        return False
    for entry in allowed:
        known = urlsplit(entry)
        same = (known.scheme, known.hostname, known.port) == (asked.scheme, asked.hostname, port)
        below = path.startswith(known.path) if known.path.endswith("/") else path == known.path
        if same and below:
            return True
    return False
