"""The audit of dependencies tells a known vulnerability, and says when it could not look."""

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"
LOCK = f"jinja2==2.0 --hash=sha256:{'0' * 64}\nsix==1.17.0 --hash=sha256:{'0' * 64}\n"
ADVISORY = {
    "id": "GHSA-xxxx-yyyy-zzzz",
    "aliases": ["CVE-2030-1"],
    "summary": "Templates leave their sandbox",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.11.3"}]}],
        }
    ],
}


@contextmanager
def service(status: int, wait: float = 0.0, **known: Any) -> Iterator[str]:
    """A stand-in for OSV that knows one advisory for each package named."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            advisory = known.get(asked["package"]["name"])
            time.sleep(wait)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"vulns": [advisory]} if advisory else {}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def audit(folder: Path, url: str, lock: str = LOCK, seconds: float = 60) -> tuple[int, str]:
    (folder / "lock").write_text(lock)
    command = [sys.executable, SCRIPT, f"--requirements={folder / 'lock'}", f"--url={url}", f"--seconds={seconds}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_known_vulnerability_fails_and_says_what_mends_it(tmp_path: Path) -> None:
    with service(200, jinja2=ADVISORY) as url:
        code, said = audit(tmp_path, url)
    assert code == 1
    for words in ("jinja2 2.0", "GHSA-xxxx-yyyy-zzzz", "CVE-2030-1", "fixed in 2.11.3", "leave their sandbox"):
        assert words in said
    assert "six" not in said


def test_nothing_known_passes(tmp_path: Path) -> None:
    with service(200) as url:
        assert audit(tmp_path, url) == (0, "audit: nothing is known against 2 locked packages\n")


@pytest.mark.parametrize("trouble", ["refused", "an error", "silence"])
def test_a_database_that_cannot_be_asked_is_said_in_one_line_and_passes(tmp_path: Path, trouble: str) -> None:
    if trouble == "refused":
        with service(200) as url:
            pass
        code, said = audit(tmp_path, url)
    elif trouble == "an error":
        with service(502) as url:
            code, said = audit(tmp_path, url)
    else:
        with service(200, wait=8) as url:
            code, said = audit(tmp_path, url, seconds=4)
    assert code == 0
    assert said.startswith("audit: could not look: ")
    assert said.count("\n") == 1


def test_a_lock_that_cannot_be_read_is_no_want_of_a_network(tmp_path: Path) -> None:
    with service(200) as url:
        code, said = audit(tmp_path, url, lock="jinja2==2.0\n")
    assert code == 1
    assert "could not look" not in said


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["audit"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PACKAGE = {
    "name": "jinja2",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2030-1"], "fix_versions": [], "description": ""}],
}


@pytest.mark.parametrize(("days", "code"), [(1, 0), (0, 0), (-1, 1)])
def test_an_advisory_is_ignored_until_its_day(
    script: ModuleType, capsys: pytest.CaptureFixture[str], days: int, code: int
) -> None:
    today = date(2030, 1, 1)
    ignored = (script.Ignored("CVE-2030-1", "templates are not rendered here", today + timedelta(days)),)
    assert script.tell([PACKAGE], ignored, today) == code
    assert ("is over" in capsys.readouterr().out) == bool(code)


def test_packages_that_were_passed_over_do_not_count_as_looked_at(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mirror that knows no advisories answers 404 for each: that is not the same as knowing of none."""
    assert script.tell([{"name": "a", "skip_reason": "not found"}], (), date.today()) == 0
    said = capsys.readouterr().out
    assert "could not look at 1 of 1 packages: a" in said
    assert "nothing is known" not in said
