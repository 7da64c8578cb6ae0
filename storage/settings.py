"""Every setting of the service, read from `DISTILLERY_*` environment variables."""

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from storage.teacher_urls import TeacherSecret, address

LOOPBACK = ("127.0.0.1", "::1", "localhost")
DRAINING = ".draining"
"""Suffix of the files that tell a worker's child to stop."""


class Settings(BaseSettings):
    """Settings of API, worker and command line; `docs/settings.md` lists them all."""

    model_config = SettingsConfigDict(
        env_prefix="DISTILLERY_",
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,  # it may be a key or hold a password
    )

    home: Path = Path(".distillery")
    """Folder of database (SQLite), artifacts, checkpoints, logs, embedded broker. API and workers share it, as one
    user: what they make is for that user alone."""
    data: Path = Path("data")
    """Data directory: where training data is read, and downloaded to if allowed."""
    allow_download: bool = True
    """Whether torchvision may download a missing data set into the data directory."""
    database_url: SecretStr | None = None
    """SQLAlchemy URL: `postgresql://…` or `sqlite:///…`. Left out: SQLite in `home`."""
    broker_url: SecretStr | None = None
    """Celery broker: `redis://…`. Left out: files in `home`."""
    queue_prefix: str = Field(default="distillery", pattern=r"^[a-z][a-z0-9-]{0,60}$")
    """Name of the broker's queues: deployments that share a broker need different ones."""

    host: str = "127.0.0.1"
    """Address the API binds to. Anything but loopback needs API keys or `allow_unauthenticated_bind`."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the API."""
    api_processes: int = Field(default=1, ge=1, le=64)
    """API server processes."""
    api_keys: dict[str, SecretStr] = Field(default_factory=dict)
    """Owners and their API keys (16 characters or more), as JSON: `{"alice": "<key>"}`. Empty: no authentication."""
    allow_unauthenticated_bind: bool = False
    """Bind beyond loopback without API keys: only where something else keeps strangers out."""
    allowed_hosts: list[str] | None = None
    """Host names that requests without API keys may address, as JSON, beside those of loopback: keeps web pages out
    that resolve a name of theirs to this service. Left out: none where bound to loopback, any beyond."""
    teacher_urls: list[str] = Field(default_factory=list, max_length=1000)
    """Where jobs may ask teachers over HTTP, as JSON: addresses, or what lies below one that ends in a slash:
    `["https://models.internal/v1/"]`. Left out: nowhere."""
    teacher_secrets: dict[str, TeacherSecret] = Field(default_factory=dict)
    """Bearer tokens for them, by the names that specs use, each with the address, or what lies below it, that may hear
    it, as JSON: `{"models": {"token": "<token>", "url": "https://models.internal/v1/"}}`. Any owner may use any. A
    token alone, `{"models": "<token>"}`, is sent to each of `teacher_urls` whose job names it."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024, le=2**30)
    """Largest request body, in bytes."""
    max_upload_bytes: int = Field(default=20 * 2**30, ge=1, le=2**44)
    """Largest dataset or model that may be uploaded, in bytes."""
    owner_upload_bytes: int | None = Field(default=None, ge=1)
    """Bytes that the datasets and models of one owner may have together, whatever their status, with the files that
    their checks wrote; more get 413. Left out: no limit."""
    max_part_bytes: int = Field(default=32 * 2**20, ge=65_536, le=2**32)
    """Size of an upload's parts, and of what is uploaded in one request, in bytes. Parts go to disk as they arrive."""
    max_queued: int = Field(default=10_000, ge=1)
    """Queued jobs beyond which submissions get 503."""
    max_streams: int = Field(default=2_000, ge=1)
    """Open event streams and waiting requests per API process; more get 503."""

    lease_seconds: float = Field(default=30.0, ge=0.5, le=3600)
    """A running job whose lease was not renewed for this long is taken back. At least six heartbeats."""
    heartbeat_seconds: float = Field(default=5.0, ge=0.05, le=600)
    """How often a worker renews its lease and says it is alive."""
    stall_seconds: float = Field(default=600.0, ge=1, le=86_400)
    """A running job without a step for this long is ended and tried again; before its first step, while it reads and
    downloads data, after an hour at the earliest. A pause waits as long for the checkpoint."""
    reconcile_seconds: float = Field(default=2.0, ge=0.1, le=600)
    """How often every API process and worker looks for lost jobs and unheard doorbells."""
    poll_seconds: float = Field(default=0.2, ge=0.02, le=10)
    """How often requests (cancel, pause) and changes for waiting clients are looked up."""
    max_failures: int = Field(default=3, ge=1, le=100)
    """Consecutive system failures without a newer checkpoint after which a job fails."""
    retry_backoff_seconds: float = Field(default=2.0, ge=0, le=3600)
    """Pause before the second try after a system failure; doubles each time. The first is at once."""
    retry_backoff_max_seconds: float = Field(default=300.0, ge=0, le=86_400)
    """The longest of these pauses, in seconds."""
    warm_spare: bool = True
    """Keep one idle training process with torch imported, so that a job starts at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What this worker trains on; `auto` takes a GPU where torch sees one."""
    drain_seconds: float = Field(default=7.0, ge=0.5, le=3600)
    """How long a stopping worker lets training write its last checkpoint before it is killed."""
    metric_points: int = Field(default=500, ge=10, le=1_000_000)
    """Points kept per training series and stage, evenly thinned; epoch metrics are always kept."""
    max_log_bytes: int = Field(default=1_048_576, ge=4096)
    """What is kept of a training process's output per attempt, in bytes (the beginning and the end)."""

    check_seconds: float = Field(default=14_400.0, gt=0, le=30 * 86_400)
    """How long a worker may take to check an upload."""
    check_memory_bytes: int = Field(default=8 * 2**30, ge=2**28, le=2**60)
    """What the process that checks an upload may take of memory, in bytes."""
    cache_bytes: int = Field(default=50 * 2**30, ge=2**20, le=2**60)
    """Bytes that decoded datasets, trained teachers and what teachers said may take in `cache`; what was not used for
    longest goes first."""

    keep_unfinished_uploads_days: float = Field(default=7.0, ge=0)
    """Days that an upload stays which was not completed or failed, after its last part or completion."""
    keep_checkpoints_days: float = Field(default=7.0, ge=0)
    """Days that checkpoints of finished jobs stay; a retry after that starts anew."""
    keep_artifacts_days: float | None = Field(default=None, ge=0)
    """Days that artifacts of finished jobs stay; left out: until the job is deleted."""
    disk_quota_bytes: int | None = Field(default=None, ge=2**20)
    """Bytes that checkpoints and artifacts may take, uploads aside; the oldest finished jobs' are swept beyond. Left
    out: no limit."""
    min_free_bytes: int = Field(default=256 * 2**20, ge=0)
    """Free bytes on the disk of `home` below which submissions and uploads get 507."""
    sweep_seconds: float = Field(default=300.0, ge=0.1)
    """How often retention is applied."""
    sweep_grace_seconds: float = Field(default=3600.0, ge=0)
    """Files younger than this are never swept, in seconds: an upload may be under way."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""
    log_format: Literal["json", "console"] = "json"
    """Form of log lines on standard error."""

    @field_validator("home", "data")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("teacher_urls")
    @classmethod
    def _addresses(cls, urls: list[str]) -> list[str]:
        return [address(url) for url in urls]

    @field_validator("api_keys")
    @classmethod
    def _long_enough(cls, keys: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for owner, key in keys.items():
            if not 1 <= len(owner) <= 100:
                raise ValueError("an owner's name has 1 to 100 characters")
            if len(key.get_secret_value()) < 16:
                raise ValueError(f"the key of {owner!r} is shorter than 16 characters")
        if len({key.get_secret_value() for key in keys.values()}) < len(keys):
            raise ValueError("two owners have the same key")
        return keys

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not re.match(
            r"(postgresql(\+psycopg)?://|sqlite:///(?!:memory:).)", url.get_secret_value()
        ):
            raise ValueError("only postgresql://… and sqlite:///<file> are supported")
        return url

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not re.match(r"rediss?://", url.get_secret_value()):
            raise ValueError("only redis://… and rediss://… are supported; without a broker, files in `home` are used")
        return url

    @field_validator("database_url", "broker_url")
    @classmethod
    def _readable(cls, url: SecretStr | None) -> SecretStr | None:
        """A driver that takes half a password for the host's name would print it."""
        if url is not None and not url.get_secret_value().startswith("sqlite:"):
            try:
                parts = urlsplit(url.get_secret_value())
                readable = parts.port != 0 and parts.netloc.count("@") <= 1
            except ValueError:
                readable = False
            if not readable:
                raise ValueError("cannot be read; in a password write @ as %40, : as %3A, / as %2F, # as %23, [ as %5B")
        return url

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lease_seconds < 6 * self.heartbeat_seconds - 1e-9:  # 6 * 0.1 is more than 0.6
            raise ValueError("lease_seconds must be at least six times heartbeat_seconds")
        if self.host not in LOOPBACK and not self.api_keys and not self.allow_unauthenticated_bind:
            raise ValueError(
                f"host {self.host!r} is reachable from outside: set DISTILLERY_API_KEYS, "
                "or DISTILLERY_ALLOW_UNAUTHENTICATED_BIND=true where something else keeps strangers out"
            )
        return self

    @property
    def database(self) -> str:
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home / 'distillery.db'}"

    @property
    def broker(self) -> str | None:
        """The broker's URL; None for the embedded one."""
        return self.broker_url.get_secret_value() if self.broker_url is not None else None

    @property
    def blobs(self) -> Path:
        return self.home / "blobs"

    @property
    def jobs(self) -> Path:
        return self.home / "jobs"

    @property
    def uploads(self) -> Path:
        """Parts that wait to be joined."""
        return self.home / "uploads"

    @property
    def cache(self) -> Path:
        """Decoded datasets, trained teachers and what teachers said: what is lost here is only made again."""
        return self.home / "cache"

    @property
    def drain_flags(self) -> Path:
        return self.home / "workers"

    @property
    def broker_folder(self) -> Path:
        return self.home / "broker"
