"""Settings: their bounds, what must fit together, and that they keep secrets."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from storage.settings import Settings

KEY = "0123456789abcdef"


def refuse(match=None, **values):
    with pytest.raises(ValidationError, match=match):
        Settings(**values)


def test_defaults_are_the_embedded_form():
    settings = Settings()
    assert settings.home == Path(".distillery").absolute()
    assert settings.database == f"sqlite:///{settings.home}/distillery.db"
    assert settings.broker is None
    assert (settings.host, settings.lease_seconds, settings.heartbeat_seconds) == ("127.0.0.1", 30.0, 5.0)
    assert (settings.stall_seconds, settings.max_failures) == (600.0, 3)
    assert (settings.blobs, settings.jobs) == (settings.home / "blobs", settings.home / "jobs")


def test_the_environment_is_read(monkeypatch):
    values = {"PORT": "1234", "API_KEYS": f'{{"alice": "{KEY}"}}', "HOME": "~/x", "DEVICE": "", "UNKNOWN": "1"}
    for name, value in values.items():
        monkeypatch.setenv(f"DISTILLERY_{name}", value)
    settings = Settings()
    assert settings.port == 1234
    assert settings.api_keys["alice"].get_secret_value() == KEY
    assert settings.home == Path.home() / "x"
    assert settings.device == "auto"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65_536), ("port", -1), ("api_processes", 0), ("max_body_bytes", 10), ("max_queued", 0),
        ("lease_seconds", 0.1), ("heartbeat_seconds", 0.0), ("stall_seconds", 0.5), ("reconcile_seconds", 0.0),
        ("poll_seconds", 0.0), ("max_failures", 0), ("retry_backoff_seconds", -1.0), ("metric_points", 1),
        ("keep_checkpoints_days", -1.0), ("keep_artifacts_days", -1.0), ("disk_quota_bytes", 1),
        ("sweep_grace_seconds", -1.0), ("log_level", "loud"), ("device", "tpu"), ("queue_prefix", "A b"),
        ("queue_prefix", ""),
    ],
)  # fmt: skip
def test_bounds(name, value):
    refuse(name, **{name: value})


def test_a_lease_is_at_least_six_heartbeats():
    refuse("at least six times", lease_seconds=29.0, heartbeat_seconds=5.0)
    Settings(lease_seconds=30.0, heartbeat_seconds=5.0)
    Settings(lease_seconds=0.6, heartbeat_seconds=0.1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.0.0.1.example.org"])
def test_strangers_are_kept_out(host):
    refuse("DISTILLERY_API_KEYS", host=host)
    Settings(host=host, api_keys={"alice": SecretStr(KEY)})
    Settings(host=host, allow_unauthenticated_bind=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_keys(host):
    assert Settings(host=host).host == host


def test_keys():
    refuse("'alice' is shorter than 16", api_keys={"alice": KEY[:15]})
    refuse("same key", api_keys={"alice": KEY, "bob": KEY})
    refuse("1 to 100", api_keys={"": KEY})
    refuse("1 to 100", api_keys={"a" * 101: KEY})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "database_url",
            ["postgresql://u:p@h/d", "postgresql+psycopg://u@h/d", "sqlite:///a.db", "sqlite:////a/b.db"],
            ["mysql://u:p@h/d", "sqlite://", "sqlite:///:memory:", "sqlite:///", "nonsense", "postgres://h/d"],
        ),
        ("broker_url", ["redis://h:1/0", "rediss://h/1"], ["amqp://h", "h:6379", "sqs://"]),
    ],
)
def test_only_what_was_built_for(name, good, bad):
    for url in good:
        Settings(**{name: url})
    for url in bad:
        refuse("supported", **{name: url})


def test_nothing_secret_is_ever_shown(monkeypatch):
    secret = "hunter2hunter2hunter2"
    settings = Settings(database_url=f"postgresql://u:{secret}@h/d", api_keys={"alice": secret})
    assert secret not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.database == f"postgresql://u:{secret}@h/d"
    monkeypatch.setenv("DISTILLERY_DATABASE_URL", f"mysql://u:{secret}@h/d")
    monkeypatch.setenv("DISTILLERY_API_KEYS", f'{{"alice": "{secret}", "bob": "{secret[:15]}"}}')
    with pytest.raises(ValidationError) as caught:
        Settings(port=-1, broker_url=f"amqp://{secret}")
    assert "hunter2" not in str(caught.value)
    monkeypatch.delenv("DISTILLERY_DATABASE_URL")
    monkeypatch.setenv("DISTILLERY_API_KEYS", f'{{"alice": "{secret}"}}')
    with pytest.raises(ValidationError) as caught:
        Settings(lease_seconds=1.0)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["database_url", "broker_url"])
@pytest.mark.parametrize("password", ["p@hunter2", "p/hunter2", "p#hunter2", "[hunter2", "x?hunter2"])
def test_a_password_that_a_driver_would_take_for_a_host_is_refused_unsaid(name, password):
    """`p@hunter2` made `failed to resolve host 'hunter2@db'` of it, in log and doctor."""
    scheme = {"database_url": "postgresql", "broker_url": "redis"}[name]
    with pytest.raises(ValidationError, match="%40") as caught:
        Settings(**{name: f"{scheme}://u:{password}@db:5432/d"})
    assert "hunter2" not in str(caught.value)
    Settings(**{name: f"{scheme}://u:p%40%2F%23%5Bhunter2@[::1]:5432/d"})


def test_a_copy_with_other_addresses_uses_them(tmp_path):
    settings = Settings(home=tmp_path)
    assert (settings.database, settings.broker) != (None, "")
    copy = settings.model_copy(update={"home": tmp_path / "b", "broker_url": SecretStr("redis://h/0")})
    assert (copy.database, copy.broker) == (f"sqlite:///{tmp_path}/b/distillery.db", "redis://h/0")
