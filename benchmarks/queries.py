"""What a series and a page of jobs cost when the tables are large.

    python benchmarks/queries.py [--form sqlite|postgresql] [--jobs 1000000] [--points 10000000] [--asks 40]
                                 [--folder FOLDER] [--out FILE]

A database of its own in each form (SQLite: a file in --folder; PostgreSQL: at DISTILLERY_TEST_POSTGRES), filled inside
the database with copies of one planned job and with 1,000 points each for as many of them as it takes, and gone
afterwards. Then the service's own routes are asked, in this process and without a socket, each time for another job or
page, in turn. Every answer is checked. The median is to be at most 50 ms.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import shutil
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
from about import about, end_tidily, result_path
from loadtest.tally import quantiles
from pydantic import SecretStr
from sqlalchemy import insert

from api.app import create_app
from api.cursors import make_cursor
from kdcore.plan import make_plan
from kdcore.spec import parse_spec, spec_digest, spec_document
from storage import schema
from storage.database import Database
from storage.log import configure_logging
from storage.settings import Settings
from storage.tables import Job

POSTGRES = os.environ.get("DISTILLERY_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
FORMS = ("sqlite", "postgresql")
TARGET_MS = 50.0
WARM = 3
"""Asked before it counts."""
SERIES, STEPS = 4, 250
"""Of a job that has any: 1,000 points."""
PAGE, TEAMS, NAMES, RARE = 50, 50, 500, 100_000
BYTES_OF_JOB, BYTES_OF_POINT = 8_000, 250
"""On disk, from above: with indexes, and with the log of what is being written."""
JOBS_AT_ONCE, OWNERS_OF_POINTS_AT_ONCE = 50_000, 200
SPEC: dict[str, Any] = {
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp", "hidden": [64]}}],
    "student": {"model": {"type": "mlp", "hidden": [8]}},
}
TEMPLATE = 10**10
ID = "'job_000000000000000' || substr(CAST(100000000000 + {n} AS TEXT), 2, 11)"
COUNT = "{name} (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM {name} WHERE n < {last})"
STATUS = "CASE WHEN n % 10 = 3 THEN 'failed' WHEN n % 10 = 7 THEN 'cancelled' ELSE 'succeeded' END"
TEAM = f"CASE WHEN n % {RARE} = 0 THEN 'rare' ELSE 'team-' || (n % {TEAMS}) END"


def note(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def id_of(number: int) -> str:
    return f"job_{number:026d}"


@contextlib.contextmanager
def settings_of(form: str, home: Path) -> Iterator[Settings]:
    """Of a service whose database is its own, and gone afterwards."""
    if form == "sqlite":
        yield Settings(home=home)
        return
    name = f"distillery-queries-{secrets.token_hex(4)}"
    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield Settings(home=home, database_url=SecretStr(POSTGRES.rsplit("/", 1)[0] + f"/{name}"))
    finally:
        with psycopg.connect(POSTGRES, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


Execute = Callable[[str], object]


@dataclass(frozen=True)
class Table:
    """What the database was filled with: jobs 1 … `jobs`, every `gap`-th of the first `owners` × `gap` with points."""

    jobs: int
    points: int

    @property
    def owners(self) -> int:
        return self.points // (SERIES * STEPS)

    @property
    def gap(self) -> int:
        return max(1, self.jobs // max(1, self.owners))


def fill(database: Database, table: Table) -> None:
    """The first job by the service's own means, the rest by copying it."""
    spec, now = parse_spec(SPEC), time.time()
    one: dict[str, Any] = {
        "id": id_of(TEMPLATE), "owner": "nobody", "name": "template", "status": "succeeded", "device": "cpu",
        "attempt": 1, "spec": spec_document(spec), "spec_digest": spec_digest(spec),
        "plan": make_plan(spec).model_dump(mode="json"),
        "created_at": now, "updated_at": now, "available_at": now, "started_at": now, "finished_at": now + 60,
        "result": {"summary": "as good as its teacher", "student": {"accuracy": 0.95}},
    }  # fmt: skip
    with database.write() as session:
        session.execute(insert(Job).values(one))
    with _filling(database) as execute:
        _copy(execute, table)


def _copy(execute: Execute, table: Table) -> None:
    """Both databases understand the same statements."""
    new = {"id": ID.format(n="n"), "owner": "'local'", "name": f"'sweep-' || (n % {NAMES})", "status": STATUS,
           "created_at": f"created_at - {table.jobs} + n"}  # fmt: skip
    columns = [column.name for column in Job.__table__.columns]
    copied = ", ".join(new.get(name, name) for name in columns)
    of = f"FROM jobs CROSS JOIN numbers WHERE jobs.id = '{id_of(TEMPLATE)}'"
    _in_parts(execute, table.jobs, JOBS_AT_ONCE, f"INSERT INTO jobs ({', '.join(columns)}) SELECT {copied} {of}")
    labels = f"INSERT INTO job_labels (job_id, key, value) SELECT {ID.format(n='n')}, 'team', {TEAM} FROM numbers"
    _in_parts(execute, table.jobs, JOBS_AT_ONCE, labels)
    values = f"{ID.format(n=f'numbers.n * {table.gap}')}, 'distill-1', 'series-' || series.n, steps.n * 10, 1, steps.n"
    points = (
        f"INSERT INTO metrics (job_id, stage, name, step, attempt, value) SELECT {values} "
        "FROM numbers CROSS JOIN series CROSS JOIN steps"
    )
    counts = [COUNT.format(name="series", first=1, last=SERIES), COUNT.format(name="steps", first=1, last=STEPS)]
    _in_parts(execute, table.owners, OWNERS_OF_POINTS_AT_ONCE, points, *counts)


@contextlib.contextmanager
def _filling(database: Database) -> Iterator[Execute]:
    """The driver's own connection, which keeps nothing safe until all is there, and then tidies up as servers do."""
    where = database.engine.url
    if where.get_backend_name() == "sqlite":
        opened: Any = sqlite3.connect(str(where.database), isolation_level=None)
        before, after = ["PRAGMA synchronous = OFF", "PRAGMA cache_size = -500000"], "PRAGMA wal_checkpoint(TRUNCATE)"
    else:
        url = where.set(drivername="postgresql").render_as_string(hide_password=False)
        opened, before, after = (
            psycopg.connect(url, autocommit=True),
            ["SET synchronous_commit = off"],
            "VACUUM ANALYZE",
        )
    with contextlib.closing(opened):
        for statement in before:
            opened.execute(statement)
        yield opened.execute
        opened.execute(after)


def _in_parts(execute: Execute, number: int, at_once: int, statement: str, *counts: str) -> None:
    """The statement for `numbers` from 1 to `number`, some of them in each transaction."""
    for first in range(1, number + 1, at_once):
        mine = COUNT.format(name="numbers", first=first, last=min(number, first + at_once - 1))
        execute(f"WITH RECURSIVE {', '.join([mine, *counts])} {statement}")


@dataclass(frozen=True)
class Case:
    """A question: its path, made anew for each time it is asked, and what holds of the answer."""

    path: Callable[[random.Random], str]
    holds: Callable[[dict[str, Any]], bool]


def cases_of(table: Table) -> dict[str, Case]:
    def owner(chance: random.Random) -> str:
        return id_of(chance.randint(1, table.owners) * table.gap)

    def page_of(there: int) -> Callable[[dict[str, Any]], bool]:
        def is_page(page: dict[str, Any]) -> bool:
            ids = [job["id"] for job in page["data"]]
            return len(ids) == min(PAGE, there) and ids == sorted(ids, reverse=True)

        return is_page

    def points(most: int) -> Callable[[dict[str, Any]], bool]:
        return lambda found: sum(len(series["points"]) for series in found["data"]) == most

    def deep(chance: random.Random) -> str:
        return make_cursor(id_of(chance.randint(PAGE + 1, table.jobs)), ("local", None, None))

    named = "name=sweep-8"
    return {
        "1,000 points of one job": Case(lambda c: f"/jobs/{owner(c)}/metrics", points(SERIES * STEPS)),
        "… one series, its last 50": Case(
            lambda c: f"/jobs/{owner(c)}/metrics?name=series-2&after_step={(STEPS - 50) * 10}", points(50)
        ),
        "a page of jobs, the first": Case(lambda c: f"/jobs?limit={PAGE}", page_of(table.jobs)),
        "… anywhere": Case(lambda c: f"/jobs?limit={PAGE}&after={deep(c)}", page_of(PAGE)),
        "… of one status": Case(lambda c: f"/jobs?limit={PAGE}&status=failed", page_of(table.jobs // 10)),
        "… of one name": Case(lambda c: f"/jobs?limit={PAGE}&{named}", page_of(table.jobs // NAMES)),
        "… of one name and status": Case(
            lambda c: f"/jobs?limit={PAGE}&{named}&status=succeeded", page_of(table.jobs // NAMES)
        ),
        "… of one label": Case(
            lambda c: f"/jobs?limit={PAGE}&label=team:team-{c.randrange(1, TEAMS)}", page_of(table.jobs // TEAMS)
        ),
        "… of a label of few": Case(lambda c: f"/jobs?limit={PAGE}&label=team:rare", page_of(table.jobs // RARE)),
        "… none of that status": Case(lambda c: f"/jobs?limit={PAGE}&status=running", page_of(0)),
        "one job": Case(lambda c: f"/jobs/{id_of(c.randint(1, table.jobs))}", lambda job: bool(job["spec"])),
    }


async def ask(settings: Settings, cases: dict[str, Case], asks: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, the cases in turn, so that no neighbour disturbs one alone; and CPU time of this process,
    which neighbours disturb less."""
    app, chance = create_app(settings), random.Random(0)
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        while any(thread.name == "warm-up" for thread in threading.enumerate()):
            await asyncio.sleep(0.1)
        for number in range(asks + WARM):
            for name, case in cases.items():
                path = case.path(chance)
                begun, cpu = time.perf_counter(), time.process_time()
                answer = await client.get(path)
                seconds = time.perf_counter() - begun, time.process_time() - cpu
                if answer.status_code != 200 or not case.holds(answer.json()):
                    raise AssertionError(f"{name}: {path} gave {answer.status_code} {answer.text[:300]}")
                took[name] += [seconds] if number >= WARM else []
    return {
        name: quantiles([wall for wall, _ in found])
        | {"cpu": round(statistics.median(cpu for _, cpu in found) * 1e3, 2)}
        for name, found in took.items()
    }


def measure(form: str, table: Table, asks: int, folder: Path) -> dict[str, Any]:
    needed = table.jobs * BYTES_OF_JOB + table.points * BYTES_OF_POINT
    if shutil.disk_usage(folder).free < 2 * needed:
        raise SystemExit(f"{form} wants {2 * needed / 2**30:.0f} GiB of free disk: give a smaller --jobs or --points")
    with settings_of(form, folder) as settings:
        database = Database(settings.database)
        schema.migrate(database)
        note(f"{form}: {table.jobs} jobs, {table.points} points")
        begun = time.monotonic()
        fill(database, table)
        filled = round(time.monotonic() - begun, 1)
        database.close()
        note(f"{form}: filled in {filled} s")
        configure_logging(Settings(log_level="warning"))  # not a line for every request
        rows = asyncio.run(ask(settings, cases_of(table), asks))
    return {"jobs": table.jobs, "points": table.points, "filled_in_seconds": filled, "milliseconds": rows}


def show(form: str, result: dict[str, Any]) -> None:
    print(
        f"\n{form}, {result['jobs']:,} jobs, {result['points']:,} points, milliseconds\n"
        f"{'':50}{'p50':>9}{'p95':>9}{'max':>9}{'CPU':>9}"
    )
    for name, row in result["milliseconds"].items():
        late = "" if row["p50"] <= TARGET_MS else f"  more than {TARGET_MS:g}"
        print(f"{name:50}" + "".join(f"{row[q]:9.1f}" for q in ("p50", "p95", "max", "cpu")) + late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, help="only this one")
    parser.add_argument("--jobs", type=int, default=1_000_000, help=f"a multiple of {NAMES}")
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--asks", type=int, default=40, help="of each question")
    parser.add_argument("--folder", type=Path, help="where SQLite's file may lie for a while")
    parser.add_argument("--out", type=Path, default=result_path("queries"))
    options, forms = parser.parse_args(), {}
    most = SERIES * STEPS * options.jobs
    if options.jobs % NAMES or not SERIES * STEPS <= options.points <= most:
        parser.error(f"--jobs must be a multiple of {NAMES}, --points between {SERIES * STEPS} and {most}")
    end_tidily()
    table = Table(options.jobs, options.points)
    for form in [options.form] if options.form else FORMS:
        with tempfile.TemporaryDirectory(prefix="distillery-queries-", dir=options.folder) as folder:
            forms[form] = measure(form, table, options.asks, Path(folder))
        show(form, forms[form])
    told = about(" ".join(["python", "benchmarks/queries.py", *sys.argv[1:]]), "psycopg", "sqlalchemy")
    options.out.write_text(json.dumps(told | {"target_ms": TARGET_MS, "forms": forms}, indent=1) + "\n")


if __name__ == "__main__":
    main()
