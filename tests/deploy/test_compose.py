"""What can be checked of docker-compose.yml where no container engine is at hand."""

import copy
import importlib.util
import json
import re
import shlex
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from storage.settings import Settings

OURS = ("migrate", "api", "worker-cpu", "worker-gpu")
Load = Callable[[Mapping[str, str]], dict[str, Any]]


def seconds(duration: str) -> float:
    """`1m30s` as seconds."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    parts = re.findall(r"(\d+)([hms])", duration)
    assert "".join(number + unit for number, unit in parts) == duration, duration
    return sum(int(number) * units[unit] for number, unit in parts)


@pytest.fixture(scope="module")
def validator() -> Any:
    """The Compose Specification's own schema, as the package check-jsonschema ships it (Apache-2.0)."""
    vendored = files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    return jsonschema.validators.validator_for(schema)(schema)


def test_the_file_is_valid_against_the_compose_specification(stack: dict[str, Any], validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(stack)] == []


@pytest.mark.parametrize(
    "path",
    [
        ("services", "api", "comand"),
        ("services", "api", "healthcheck", "intervall"),
        ("services", "api", "depends_on", "migrate", "condition"),
        ("volume",),
    ],
)
def test_the_schema_refuses_a_broken_file(stack: dict[str, Any], validator: Any, path: tuple[str, ...]) -> None:
    broken = node = copy.deepcopy(stack)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = "nonsense"
    assert not validator.is_valid(broken)


@pytest.mark.parametrize("missing", ["POSTGRES_PASSWORD", "REDIS_PASSWORD"])
def test_there_are_no_default_passwords(load_stack: Load, passwords: dict[str, str], missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        load_stack(passwords | {missing: ""})


def test_no_password_stands_in_the_file(root: Path) -> None:
    text = (root / "docker-compose.yml").read_text()
    for name, value in re.findall(r"^\s+(\w*PASSWORD\w*|\w*AUTH): (.+)$", text, flags=re.MULTILINE):
        assert value.startswith("${"), name


def test_the_example_environment_names_every_variable_and_no_password(root: Path, passwords: dict[str, str]) -> None:
    text = (root / "deploy.env.example").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", (root / "docker-compose.yml").read_text()))
    named = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, flags=re.MULTILINE))
    assert used == set(named)
    assert {name for name in named if re.search(rf"^{name}=$", text, flags=re.MULTILINE)} == set(passwords)


@pytest.mark.parametrize("service", OURS)
def test_each_command_line_is_one_the_command_accepts(stack: dict[str, Any], service: str) -> None:
    from distillery.cli import make_parser

    arguments = make_parser().parse_args(stack["services"][service]["command"])
    assert arguments is not None


@pytest.mark.parametrize("keys", ["", '{"alice": "sixteen-characters-or-more"}'])
@pytest.mark.parametrize("service", OURS)
def test_each_variable_is_a_setting_with_a_valid_value(
    load_stack: Load, passwords: dict[str, str], service: str, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = load_stack(passwords | {"DISTILLERY_API_KEYS": keys})["services"][service]["environment"]
    for name, value in environment.items():
        assert isinstance(value, str), f"{name} must be quoted: Compose hands on strings"
        assert name.removeprefix("DISTILLERY_").lower() in Settings.model_fields, name
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.database == f"postgresql://distillery:{passwords['POSTGRES_PASSWORD']}@postgres:5432/distillery"
    assert settings.broker == f"redis://:{passwords['REDIS_PASSWORD']}@redis:6379/0"
    assert bool(settings.api_keys) == (bool(keys) and service == "api")


def test_addresses_name_services_of_the_file(stack: dict[str, Any]) -> None:
    services = stack["services"]
    environment = services["api"]["environment"]
    for variable in ("DISTILLERY_DATABASE_URL", "DISTILLERY_BROKER_URL"):
        host = re.search(r"@([a-z]+):", environment[variable])
        assert host is not None
        assert set(services[host[1]]["networks"]) & set(services["api"]["networks"])
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"] in environment["DISTILLERY_DATABASE_URL"]


def test_only_the_api_is_published_and_only_to_loopback(stack: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in stack["services"].items() if "ports" in service}
    assert set(published) == {"api"}
    port = stack["services"]["api"]["environment"]["DISTILLERY_PORT"]
    assert all(entry.startswith("127.0.0.1:") and entry.endswith(f":{port}") for entry in published["api"])
    assert stack["networks"]["backend"]["internal"] is True
    for name in ("postgres", "redis"):
        assert stack["services"][name]["networks"] == ["backend"]


def test_everybody_sees_the_same_folders(stack: dict[str, Any], root: Path) -> None:
    services = stack["services"]
    mounts = {
        name: {mount.split(":")[1]: mount.split(":")[0] for mount in service.get("volumes", [])}
        for name, service in services.items()
    }
    for name in ("api", "worker-cpu", "worker-gpu"):
        environment = services[name]["environment"]
        assert mounts[name][environment["DISTILLERY_HOME"]] == "home"
    for name in ("worker-cpu", "worker-gpu"):
        assert mounts[name][services[name]["environment"]["DISTILLERY_DATA"]] == "data"
    named = {source for folders in mounts.values() for source in folders.values()}
    assert named == set(stack["volumes"])
    image = (root / "Dockerfile.gpu").read_text()
    for folder in mounts["worker-cpu"]:
        assert folder in image, f"{folder} must belong to the image's user, or a new volume belongs to root"


def test_a_folder_of_the_host_may_stand_for_the_data_volume(load_stack: Load, passwords: dict[str, str]) -> None:
    stack = load_stack(passwords | {"DISTILLERY_DATA_FOLDER": "/srv/data"})
    assert "/srv/data:/data" in stack["services"]["worker-cpu"]["volumes"]


def test_the_schema_is_migrated_before_anything_starts(stack: dict[str, Any]) -> None:
    services = stack["services"]
    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "worker-cpu", "worker-gpu"):
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in services[needed]


def test_what_stays_up_restarts_and_has_a_health_check(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        if name != "migrate":
            assert service["restart"] == "unless-stopped", name
            assert seconds(service["healthcheck"]["interval"]) > 0, name


def test_a_stopping_worker_has_time_to_write_its_last_checkpoint(stack: dict[str, Any]) -> None:
    drain = Settings().drain_seconds
    for name in ("worker-cpu", "worker-gpu"):
        worker = stack["services"][name]
        assert "DISTILLERY_DRAIN_SECONDS" not in worker["environment"]
        assert seconds(worker["stop_grace_period"]) >= 2 * drain


def test_containers_have_no_more_rights_than_they_need(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
        if name != "postgres":
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name


def test_images_are_pinned(stack: dict[str, Any]) -> None:
    for name, service in stack["services"].items():
        assert re.fullmatch(r"[a-z]+:\d+\.\d+[\w.-]*", service["image"]), name


def test_a_gpu_worker_starts_only_where_it_was_asked_for(stack: dict[str, Any]) -> None:
    profiles = {name: service.get("profiles") for name, service in stack["services"].items()}
    assert {name for name, profile in profiles.items() if profile} == {"worker-gpu"}
    devices = stack["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert [(device["driver"], device["capabilities"]) for device in devices] == [("nvidia", ["gpu"])]


def test_health_checks_run_what_is_there(stack: dict[str, Any]) -> None:
    for name in ("api", "worker-cpu", "worker-gpu"):
        kind, *command = stack["services"][name]["healthcheck"]["test"]
        assert kind == "CMD"
        assert command[0] == "python"
        if command[1] == "-m":
            assert importlib.util.find_spec(command[2]) is not None, command
        else:
            compile(command[2], "healthcheck", "exec")


def test_the_shell_commands_are_well_formed(stack: dict[str, Any]) -> None:
    command = stack["services"]["redis"]["command"]
    assert shlex.split(command[2])[:2] == ["exec", "redis-server"]
    assert '"$REDIS_PASSWORD"' in command[2]
