"""How threads wait is said before torch is loaded, and whoever says it himself is obeyed."""

import os
import subprocess
import sys

import pytest

ALONE = "import sys, os, kdcore.environment; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
COMMAND = """
import builtins, os
own, seen = builtins.__import__, []
def noted(name, *rest, **more):
    if name == "torch":
        seen.append(os.environ.get("GOMP_SPINCOUNT"))
    return own(name, *rest, **more)
builtins.__import__ = noted
import kdcore.__main__
print(seen[0])
"""


def said(script: str, given: dict[str, str]) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment | given, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting(given: dict[str, str], spins: str) -> None:
    assert said(ALONE, given) == f"False {spins}"


def test_the_command_says_it_before_torch_is_loaded() -> None:
    assert said(COMMAND, {}) == "3000"
