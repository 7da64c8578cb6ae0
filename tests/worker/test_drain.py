"""A worker that is told to end, while its database neither answers nor refuses, or while its job hears nothing."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url

from kdcore.choices import can_compile
from storage import schema
from storage.database import Database
from tests.conftest import OpenSettings
from tests.faults.proxy import Proxy
from tests.versions import schema_at
from worker.keeper import EXIT_SCHEMA, OVERDUE_SECONDS

from .conftest import ENDLESS, SOON, Rig, alive

SLACK_SECONDS = 10.0
"""For a busy machine. The connection's own time limits take half a minute and more."""


@pytest.fixture
def cut_off(open_settings: OpenSettings, tmp_path: Path) -> Iterator[tuple[Rig, Proxy]]:
    """A rig whose workers reach PostgreSQL through a proxy; the test itself does not need it."""
    with open_settings("deployed", tmp_path) as settings:
        address = make_url(settings.database)
        database = Database(settings.database)
        schema.ensure(database)
        with Proxy(address.host or "127.0.0.1", address.port or 5432) as proxy:
            through = SecretStr(proxy.url(settings.database))
            values = {"database_url": through, "device": "cpu", "heartbeat_seconds": 0.5, "drain_seconds": 3.0}
            rig = Rig(settings.model_copy(update=values | {"warm_spare": False}), database)
            try:
                yield rig, proxy
            finally:
                proxy.heal()
                rig.close()
                database.close()


def test_a_database_that_hangs_does_not_keep_a_worker_that_is_to_end(cut_off: tuple[Rig, Proxy]) -> None:
    """It stayed for as long as the connection's own time limits let it: half a minute and more."""
    rig, proxy = cut_off
    worker = rig.start()
    job_id = rig.submit(ENDLESS)
    rig.until_training(job_id)
    proxy.half_open(60.0)
    worker.terminate()
    worker.wait(rig.settings.drain_seconds + OVERDUE_SECONDS + SLACK_SECONDS)
    rig.nothing_left(5)
    assert rig.job(job_id).status == "running"  # until its lease runs out


def test_a_worker_that_hangs_under_another_schema_says_so_too(cut_off: tuple[Rig, Proxy]) -> None:
    """It said 1, and who starts workers started it again and again."""
    rig, proxy = cut_off
    worker = rig.start()
    rig.until_training(rig.submit(ENDLESS))
    said = rig.settings.home / "worker-0.txt"
    with schema_at(rig.database, "from_the_future"):
        rig.until(lambda: '"schema_changed"' in said.read_text(), 30)
        proxy.half_open(60.0)
        status = worker.wait(rig.settings.drain_seconds + OVERDUE_SECONDS + SLACK_SECONDS)
    assert status == EXIT_SCHEMA
    rig.nothing_left(5)


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
def test_a_worker_that_is_slow_at_its_very_end_says_so_too(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarm that ends it said -14, and who starts workers started it again and again."""
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import atexit, sys, time\nif sys.orig_argv[1:] == ['-m', 'worker']: atexit.register(time.sleep, 60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    worker = rig.start()
    with schema_at(rig.database, "from_the_future"):
        status = worker.wait(rig.settings.drain_seconds + OVERDUE_SECONDS + SLACK_SECONDS)
    assert status == EXIT_SCHEMA
    rig.nothing_left(5)


@pytest.mark.skipif(not can_compile() or "CXX" in os.environ, reason="g++ does not compile here")
@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
def test_a_compiler_keeps_neither_a_worker_that_is_to_end_nor_a_cancel(rig: Rig) -> None:
    """Training hears nothing while it compiles, and the compiler is a process of its own."""
    rig.settings = rig.settings.model_copy(update={"drain_seconds": 1.0})
    worker = rig.start()
    job_id = rig.submit(ENDLESS | {"tuning": {"compile": "always"}})
    rig.until(lambda: compilers(rig, worker))
    worker.terminate()
    worker.wait(rig.settings.drain_seconds + OVERDUE_SECONDS + SLACK_SECONDS)
    rig.nothing_left(SOON)
    job = rig.job(job_id)
    assert (job.status, job.failures) == ("queued", 0)
    assert rig.last(job_id, "requeued").data == {"reason": "drain"}

    worker = rig.start()
    rig.until(lambda: compilers(rig, worker))
    trained = rig.last(job_id, "resumed_from_checkpoint").data
    assert (trained["stage"], trained["step"]) == ("distill-1", 0), "the teacher was trained before it"
    rig.ask(job_id, "cancel")
    rig.until_status(job_id, "cancelled")
    assert rig.last(job_id, "cancelled").at - rig.last(job_id, "cancel_requested").at < SOON
    rig.until(lambda: not compilers(rig, worker), SOON)


def compilers(rig: Rig, worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """What a worker's training processes compile with."""
    found = []
    for process in rig.tree(worker):
        with contextlib.suppress(psutil.Error):
            if process.name() == "cc1plus" and alive(process):
                found.append(process)
    return found


SLOW_END = """
import atexit, sys, time
if sys.orig_argv[-2:] == ["-m", "worker"]:
    atexit.register(time.sleep, 60)
"""


def test_what_is_tidied_up_at_the_very_end_does_not_keep_a_worker(
    cut_off: tuple[Rig, Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's pool and Python took 3 s for it on a busy machine, beyond all that bounds a drain."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_END)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rig, _ = cut_off
    worker = rig.start()
    worker.terminate()
    assert worker.wait(rig.settings.drain_seconds + OVERDUE_SECONDS + SLACK_SECONDS) == -signal.SIGALRM
