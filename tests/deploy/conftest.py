"""Reads docker-compose.yml as Compose would: YAML, merges, then variables in every value."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
PASSWORDS = {"POSTGRES_PASSWORD": "postgres-s3cret-0123456789", "REDIS_PASSWORD": "redis-s3cret-0123456789"}
_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Z_]+)(?:(:[-?])([^}]*))?\})")


def substitute(text: str, environment: Mapping[str, str]) -> str:
    """`${A}`, `${A:-default}`, `${A:?message}` and `$$`, which is all that the file uses.

    Raises:
        KeyError: a required variable is missing or empty.
    """

    def value(match: re.Match[str]) -> str:
        dollar, name, operator, rest = match.groups()
        if dollar:
            return "$"
        found = environment.get(name, "")
        if found or operator is None:
            return found
        if operator == ":?":
            raise KeyError(name)
        return str(rest)

    result = _VARIABLE.sub(value, text)
    assert "${" not in result, f"a form of substitution that this reader does not know: {text}"
    return result


def walk(node: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(node, str):
        return substitute(node, environment)
    if isinstance(node, dict):
        return {key: walk(value, environment) for key, value in node.items()}
    if isinstance(node, list):
        return [walk(value, environment) for value in node]
    return node


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def passwords() -> dict[str, str]:
    return dict(PASSWORDS)


@pytest.fixture
def load_stack() -> Callable[[Mapping[str, str]], dict[str, Any]]:
    """The compose file with the variables of an environment filled in."""
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return lambda environment: walk(document, environment)


@pytest.fixture
def stack(load_stack: Callable[[Mapping[str, str]], dict[str, Any]]) -> dict[str, Any]:
    """The compose file with passwords and nothing else set."""
    return load_stack(PASSWORDS)
