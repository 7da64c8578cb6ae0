"""What answers must hold, beside their status."""

import re
from collections.abc import Callable
from typing import Any

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
PAGE, MOST_POINTS = 20, 50
WITH_METRICS = 50
"""So many of the newest finished jobs have series and checkpoints: of old jobs hardly anybody asks for them."""
RARE, RARE_JOBS = "rare", 5
"""A label of that many jobs."""
Job = dict[str, Any]
Teams = dict[str, str]
"""By job the label `team` that it was given: a copy's spec shows that of the job it was copied from."""

FILTERS: tuple[tuple[str, int, Callable[[Job, Teams], bool]], ...] = (
    ("", 2 * PAGE, lambda job, teams: True),
    ("&status=failed", 1, lambda job, teams: job["status"] == "failed"),
    ("&status=running", 0, lambda job, teams: job["status"] == "running"),
    ("&name=sweep-7", 1, lambda job, teams: job["name"] == "sweep-7"),
    ("&name=sweep-7&status=succeeded", 1, lambda job, teams: (job["name"], job["status"]) == ("sweep-7", "succeeded")),
    ("&name=none&status=succeeded", 0, lambda job, teams: False),
    ("&label=team:speech", 2 * PAGE, lambda job, teams: teams.get(job["id"]) == "speech"),
    (f"&label=team:{RARE}", RARE_JOBS, lambda job, teams: teams.get(job["id"]) == RARE),
)
"""What a list is asked for, how many jobs its first two pages have at least, and what holds of each."""


def are_thinned(series: list[dict[str, Any]]) -> bool:
    steps = [[step for step, _ in each["points"]] for each in series]
    return bool(steps) and all(1 <= len(each) <= MOST_POINTS and each == sorted(set(each)) for each in steps)


def are_whole(events: list[dict[str, Any]]) -> bool:
    numbers = [event["id"] for event in events]
    return bool(events) and numbers == list(range(1, len(events) + 1)) and events[-1]["type"] in TERMINAL


PARTS: dict[str, Callable[[list[dict[str, Any]]], bool]] = {
    f"metrics?max_points={MOST_POINTS}": are_thinned,
    "events": are_whole,
    "artifacts": lambda files: not files or {"student.onnx", "result.json"} <= {file["name"] for file in files},
    "checkpoints": lambda saved: bool(saved) and all(each["digest"].startswith("sha256:") for each in saved),
}
"""What belongs to a finished job, and what holds of it; only one that succeeded has artifacts."""


def counts(figures: bytes, waiting: int) -> bool:
    """Whether figures for Prometheus count at least so many queued jobs."""
    found = re.search(rb'^distillery_jobs\{status="queued"\} (\d+)', figures, re.MULTILINE)
    return found is not None and int(found[1]) >= waiting and b"\ndistillery_database_up 1.0\n" in figures
