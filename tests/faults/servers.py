"""PostgreSQL and Redis of the tests' own, which a test may stop, freeze, kill and start again (on Linux)."""

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg
import redis

START_SECONDS = 40.0
END_SECONDS = 20.0


class MissingServer(Exception):  # noqa: N818 - says what is the case, and is no failure everywhere
    """The server's program is not installed here."""


def reserve_port() -> socket.socket:
    """A socket that keeps a free port of 127.0.0.1 while its owner is away between an end and a new start.

    It is bound but never listens: clients are refused, the system gives the port to nobody else, and a server that
    sets SO_REUSEADDR, as all of these do, can listen on it.
    """
    guard = socket.socket()
    guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    guard.bind(("127.0.0.1", 0))
    return guard


class _Server:
    """One server: a child process, whatever that forks, and a folder that all of them work in."""

    name = ""

    def __init__(self, folder: Path | None, owner: dict[str, Any]) -> None:
        self.lock = threading.RLock()  # one start, end or frost at a time
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=folder)).resolve()
        self.folder.chmod(0o755)
        self.data = self.folder / "data"
        self.data.mkdir()
        self._owner = owner  # Popen's arguments for the user it runs as
        if owner:
            os.chown(self.folder, owner["user"], owner["group"])
            os.chown(self.data, owner["user"], owner["group"])
        self._log = self.folder / "log"
        self._guard = reserve_port()
        self.port: int = self._guard.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers; what a crash left behind may refuse that for a while."""
        with self.lock:
            deadline = time.monotonic() + START_SECONDS
            while not (self.running and self._answers()):
                if time.monotonic() > deadline:
                    self.kill()
                    raise TimeoutError(f"{self.name} did not start in {START_SECONDS:.0f} s: {self._said()}")
                if not self.running:
                    self._end_processes()  # of a parent that died alone
                    self._process = self._spawn(self._command())
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to it and to all its processes; none of them gets to say a word about the death of another."""
        with self.lock:
            with suppress(TimeoutError):
                self.freeze()
            if self._process is not None:
                self._process.kill()
                self._process.wait(END_SECONDS)
            self._end_processes()

    def freeze(self, seconds: float | None = None) -> None:
        """SIGSTOP to all its processes until all stand still; with seconds, thaw them after that and then return."""
        with self.lock:
            if self._process is None or not self.running:
                return
            self._process.send_signal(signal.SIGSTOP)  # the parent first: it must not fork anew
            deadline = time.monotonic() + END_SECONDS
            while moving := [one for one in self._processes() if one.info["status"] != psutil.STATUS_STOPPED]:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.name}: processes {[one.pid for one in moving]} do not stop")
                for process in moving:  # one that waits for the disk stops when it has what it waits for
                    with suppress(psutil.NoSuchProcess):
                        process.suspend()
                time.sleep(0.005)
            if seconds is not None:
                try:
                    time.sleep(seconds)
                finally:
                    self.thaw()

    def thaw(self) -> None:
        """SIGCONT to all its processes."""
        with self.lock:
            for process in self._processes():
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def pids(self) -> list[int]:
        """Its processes that live now."""
        return [process.pid for process in self._processes()]

    def close(self) -> None:
        """End it and remove all its files."""
        with self.lock:
            self.kill()
            self._guard.close()
            if self.folder.exists():
                shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _prepare(self) -> None:
        """What must be there before the first start."""

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for the tests; they end their servers
                **self._owner,
            )

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-2000:] if self._log.exists() else "nothing"

    def _end(self, number: signal.Signals) -> None:
        """Ask it to end by a signal; kill it where it does not."""
        with self.lock:
            if self._process is None or not self.running:
                return
            self.thaw()
            self._process.send_signal(number)
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
                raise TimeoutError(f"{self.name} did not end in {END_SECONDS:.0f} s: {self._said()}") from None

    def _processes(self) -> list[psutil.Process]:
        """Its processes, known by the folder they work in: every backend is in a session and group of its own."""
        here = str(self.data)
        return [process for process in psutil.process_iter(["cwd", "status"]) if process.info["cwd"] == here]

    def _end_processes(self) -> None:
        deadline = time.monotonic() + END_SECONDS
        while found := self._processes():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: processes {[process.pid for process in found]} outlive SIGKILL")
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.01)


class Postgres(_Server):
    """A PostgreSQL that runs once this returns, with the superuser `postgres` and no password."""

    name = "postgres"

    def __init__(self, folder: Path) -> None:
        self._binaries = _postgres_binaries()
        owner = _unprivileged()
        # Root's temporary folders are often closed to others, and PostgreSQL refuses to run as root.
        places = (folder.resolve(), *folder.resolve().parents)
        closed = owner and not all(place.stat().st_mode & 0o001 for place in places)
        super().__init__(None if closed else folder, owner)

    def stop(self, mode: str = "fast") -> None:
        """End it in order: `fast` rolls back and writes a checkpoint, `immediate` leaves recovery to the next start."""
        self._end({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])

    def restart(self, mode: str = "fast") -> None:
        with self.lock:
            self.stop(mode)
            self.start()

    def kill(self) -> None:
        """A power cut: SIGKILL to the postmaster and all backends, and their shared memory is gone too."""
        with self.lock:
            super().kill()
            self._remove_shared_memory()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Make an empty database; its URL."""
        with self._admin() as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop the database if it is there; whoever is connected is thrown out."""
        with self._admin() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def cut_connections(self, database: str, share: float = 1.0, chance: random.Random | None = None) -> int:
        """Have the server end a random share of the database's connections; how many."""
        with self._admin() as connection:
            rows = connection.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s", (database,)).fetchall()
            pids = sorted(pid for (pid,) in rows if pid != connection.info.backend_pid)
            chosen = (chance or random.Random()).sample(pids, round(share * len(pids)))
            connection.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (chosen,))
        return len(chosen)

    def _admin(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.url(), autocommit=True, connect_timeout=5)

    def _prepare(self) -> None:
        command = [self._binaries / "initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--no-sync"]
        self._process = self._spawn([*map(str, command), "-E", "UTF8", "--locale=C"])
        if self._process.wait(START_SECONDS) != 0:
            raise RuntimeError(f"initdb failed: {self._said()}")

    def _command(self) -> list[str]:
        # As in a real deployment, fsync, synchronous_commit and full_page_writes are on. What a killed process has
        # written stays in the system's page cache, so a commit would outlive it even without the fsync; but a write
        # that SIGKILL interrupts may leave half of an 8 KiB page, which recovery mends from the full page alone.
        settings = {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "max_connections": "300",
            "shared_buffers": "64MB",
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # files in the data folder, so that none stays elsewhere
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._binaries / "postgres"), "-D", str(self.data), *options]

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _remove_shared_memory(self) -> None:
        """Remove the segment that a killed postmaster leaves; its number is the lock file's seventh line."""
        lock_file = self.data / "postmaster.pid"
        lines = lock_file.read_text().splitlines() if lock_file.exists() else []
        if len(lines) >= 7 and len(key := lines[6].split()) == 2:
            subprocess.run(["ipcrm", "-m", key[1]], check=False, capture_output=True, timeout=END_SECONDS)


class Redis(_Server):
    """A Redis that runs once this returns and keeps nothing when it ends."""

    name = "redis"

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise MissingServer("redis-server is not installed: install it (Debian: apt-get install redis-server).")
        self._program = program
        super().__init__(folder, {})

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def restart_empty(self) -> None:
        """Kill it and start it again: all it held is gone."""
        with self.lock:
            self.kill()
            self.start()

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def _command(self) -> list[str]:
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.data)]
        return [self._program, *place, "--save", "", "--appendonly", "no"]

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url(), socket_timeout=2, socket_connect_timeout=2)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


def _unprivileged() -> dict[str, Any]:
    """Popen's arguments for a user that PostgreSQL runs as; none where we are not root."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get("postgres") or known["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _postgres_binaries() -> Path:
    """The folder of the newest PostgreSQL that can make and run a database."""
    folders = [Path(folder) for folder in os.get_exec_path()] + list(Path("/usr/lib/postgresql").glob("*/bin"))
    if config := shutil.which("pg_config"):
        asked = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False, timeout=END_SECONDS)
        folders.append(Path(asked.stdout.strip()))
    found = [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]
    if not found:
        raise MissingServer(
            "PostgreSQL's programs initdb and postgres are not installed: install the server, not its client alone "
            "(Debian: apt-get install postgresql)."
        )
    return max(found, key=_version)


def _version(folder: Path) -> tuple[int, ...]:
    said = subprocess.run(
        [folder / "postgres", "--version"], capture_output=True, text=True, check=False, timeout=END_SECONDS
    )
    return tuple(int(number) for number in re.findall(r"\d+", said.stdout)[:2])
