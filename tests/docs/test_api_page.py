"""docs/api.md says what the code does."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import problems
from storage.actions import _ACTIONS
from storage.lifecycle import TRANSITIONS, Status
from storage.reconciler import LOST

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text()


def descendants(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from descendants(child)


def test_every_problem_is_listed_and_no_other() -> None:
    source = (ROOT / "api" / "problems.py").read_text()
    said = {(status, code) for status, code in re.findall(r'problem\(request, (\d{3}), "(\w+)"', source)}
    said |= {(str(error.status), error.code) for error in descendants(problems.ProblemError)}
    said |= {("405", "method_not_allowed")}
    assert set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", PAGE, flags=re.MULTILINE)) == said


def job_error_codes() -> Iterator[str]:
    """First words of every error that a job can end with."""
    position = {"TrainingError": 0, "Verdict": 1, "fail": 0, "release": 0}
    for path in [*(ROOT / "kdcore").rglob("*.py"), *(ROOT / "worker").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and path.name == "attempt.py":
                yield from (e.value for e in node.value.elts[:1] if isinstance(e, ast.Constant))
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if name in position and len(given) > position[name]:
                yield given[position[name]]
    yield LOST["code"]


def test_every_error_of_a_job_is_listed_and_no_other() -> None:
    table = PAGE.split("A job that failed carries")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (?:user|system) \|", table, flags=re.MULTILINE)
    listed = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert listed == set(job_error_codes()) - {"stale"}


def test_every_event_is_listed() -> None:
    listed = set(re.findall(r"`(\w+)`", PAGE.split("\nEvents:")[1].split("\n\n")[0]))
    said = set(TRANSITIONS) | {f"{wish}_requested" for wish in ("cancel", "pause")}
    for path in [*(ROOT / "kdcore").rglob("*.py"), *(ROOT / "worker").glob("*.py"), *(ROOT / "storage").glob("*.py")]:
        said |= set(re.findall(r'(?:add_event\(session, fence|reporter\.event\(|events\.append\(\()[, ]*"(\w+)"',
                               path.read_text()))  # fmt: skip
    assert said == listed - {"submitted"}


def test_the_table_of_requests_is_the_table_of_transitions() -> None:
    change = {"cancel": "cancelled", "pause": "paused", "resume": "resumed", "retry": "retried"}
    rows = re.findall(r"^\| `POST /jobs/\{id\}/(\w+)` \|(.*)\|$", PAGE, flags=re.MULTILINE)
    assert {action for action, _ in rows} == set(_ACTIONS)
    header = re.search(r"^\| call \|(.*)\|$", PAGE, flags=re.MULTILINE)
    assert header is not None
    statuses = [Status(cell.strip()) for cell in header[1].split("|")]
    for action, cells in rows:
        sources, target = TRANSITIONS[change[action]]
        for status, cell in zip(statuses, (cell.strip() for cell in cells.split("|")), strict=True):
            if status == target:
                expected = "200"
            elif status in sources:
                expected = "request" if status == Status.RUNNING else str(target)
            else:
                expected = "409"
            assert cell == expected, f"{action} of a {status} job"


@pytest.mark.parametrize("page", ["architecture.md"])
def test_the_table_of_transitions_is_the_code(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| (\w+) \|", text, flags=re.MULTILINE)
    assert {name: (set(sources.split(", ")), target) for name, sources, target in rows} == {
        name: ({str(source) for source in sources}, str(target)) for name, (sources, target) in TRANSITIONS.items()
    }
