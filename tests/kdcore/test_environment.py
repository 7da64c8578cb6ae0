"""How threads wait is said before torch is loaded, freed memory is kept, and whoever says it himself is obeyed."""

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
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GOMP_", "OMP_WAIT", "MALLOC_", "GLIBC"))
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


ACCEPTED = "import ctypes; print(getattr(ctypes.CDLL(None), 'mallopt', lambda *given: 0)(-3, 2**27))"
FREED = """
import ctypes, resource
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: huge pages would be few
import kdcore.environment
pages = []
for _ in range(4):
    bytearray(64 * 2**20)
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[-1] - pages[1] < 1000)
"""
"""Of 64 MiB, 16,384 pages of 4 KiB each time that the system gives them."""
FAKE = """
import ctypes
asked = []
class Library:
    def mallopt(self, number, size):
        asked.append(number)
        return ANSWER
ctypes.CDLL = lambda name: Library()
import kdcore.environment
print(asked)
"""


@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, "True"), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, "False"), ({"GLIBC_TUNABLES": ""}, "False")],
)
def test_what_is_freed_is_kept(given: dict[str, str], kept: str) -> None:
    if said(ACCEPTED, {}) != "1":
        pytest.skip("this C library does not keep blocks as large")
    assert said(FREED, given) == kept


@pytest.mark.parametrize(("answer", "asked"), [("1", "[-3, -1]"), ("0", "[-3]")])
def test_a_c_library_that_refuses_is_left_as_it_is(answer: str, asked: str) -> None:
    assert said(FAKE.replace("ANSWER", answer), {}) == asked


def test_another_c_library() -> None:
    """It has no mallopt."""
    script = "import ctypes; ctypes.CDLL = lambda name: object(); import kdcore.environment; print(True)"
    assert said(script, {}) == "True"
