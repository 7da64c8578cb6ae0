"""Log lines: one form for all, with the ids that are bound."""

import json
import logging
import subprocess
import sys

import pytest

SCRIPT = """
import logging, sys
import structlog
from storage.log import configure_logging
from storage.settings import Settings

configure_logging(Settings(log_format=sys.argv[1], log_level=sys.argv[2]))
structlog.contextvars.bind_contextvars(job="job_1", attempt=2)
structlog.get_logger("mine").info("one", answer=42)
logging.getLogger("theirs").warning("two %s", "words")
logging.getLogger("sqlalchemy.engine").info("never")
structlog.get_logger("mine").debug("quiet")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger("mine").exception("three")
    logging.getLogger("theirs").exception("four")
"""


def run(form, level="info"):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, form, level],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr


def test_json_lines():
    lines = [json.loads(line) for line in run("json").splitlines()]
    assert [line["event"] for line in lines] == ["one", "two words", "three", "four"]
    assert all((line["job"], line["attempt"]) == ("job_1", 2) for line in lines)
    assert all(line["timestamp"].endswith("Z") for line in lines)
    assert [line["logger"] for line in lines] == ["mine", "theirs", "mine", "theirs"]
    assert [line["level"] for line in lines] == ["info", "warning", "error", "error"]
    assert lines[0]["answer"] == 42
    assert all("ZeroDivisionError" in line["exception"] for line in lines[2:])


@pytest.mark.parametrize(("level", "events"), [("debug", 5), ("warning", 3), ("error", 2)])
def test_levels(level, events):
    assert len(run("json", level).splitlines()) == events


def test_the_console_form_is_for_people():
    shown = run("console")
    assert "one" in shown
    assert shown.count("ZeroDivisionError: division by zero") == 2
    assert logging.getLevelName(logging.INFO) == "INFO"
