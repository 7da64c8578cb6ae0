"""What a user's script touches: `distillery.Client` and its errors; `distillery` on the command line.

    with distillery.Client() as client:
        job = client.submit("examples/digits-mlp.yaml")
        client.wait(job["id"])
        client.download(job["id"], "student")

Importing this package loads nothing but the standard library; the names below are loaded when first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillery.client import Client as Client
    from distillery.errors import ApiError as ApiError
    from distillery.errors import ConnectionFailed as ConnectionFailed
    from distillery.errors import DistilleryError as DistilleryError
    from distillery.errors import DownloadFailed as DownloadFailed
    from distillery.errors import JobFailed as JobFailed
    from distillery.errors import UploadFailed as UploadFailed
    from distillery.events import Event as Event

_HOMES = {
    "Client": "distillery.client",
    "Event": "distillery.events",
    "ApiError": "distillery.errors",
    "ConnectionFailed": "distillery.errors",
    "DistilleryError": "distillery.errors",
    "DownloadFailed": "distillery.errors",
    "JobFailed": "distillery.errors",
    "UploadFailed": "distillery.errors",
}
__all__ = [
    "ApiError",
    "Client",
    "ConnectionFailed",
    "DistilleryError",
    "DownloadFailed",
    "Event",
    "JobFailed",
    "UploadFailed",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'distillery' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
