"""How the service bears a crowd: a table full of jobs, pollers, streams and submissions, while jobs are trained.

    python benchmarks/load.py [--form embedded|deployed] [--api-processes N] [--jobs 100000] [--clients 200]
                              [--seconds 60] [--pause 1] [--streams 1000] [--stream-seconds 20] [--post-seconds 10]
                              [--out FILE]

Starts a service of its own in each form (the deployed one at DISTILLERY_TEST_POSTGRES and DISTILLERY_TEST_REDIS, in a
database of its own) and drives it from a process of its own: submissions as fast as they go; the crowd; and, on one
API process, many open event streams. Its exit status is 1 where anything was answered wrongly.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from about import about
from loadtest.clients import SPEC
from loadtest.rows import fill
from loadtest.service import Sampler, Service, settings_of

HERE = Path(__file__).parent
POSTGRES = os.environ.get("DISTILLERY_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("DISTILLERY_TEST_REDIS", "redis://127.0.0.1:6379/0")
FORMS = {"embedded": 1, "deployed": 2}
"""And the API processes of each."""
SPARE_SECONDS = 240.0
WAITING_SHARE, WAITING_MOST = 10, 1_000
WORDS = ("fastapi", "psycopg", "sqlalchemy", "torch", "uvicorn")


def note(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def run_phase(service: Service, phase: str, **arguments: Any) -> dict[str, Any]:
    """One phase in a process of its own, and what the service used meanwhile."""
    note(phase)
    told = json.dumps({"phase": phase, "host": service.host, "port": service.port, **arguments})
    with Sampler(service) as sampler:
        done = subprocess.run(
            [sys.executable, "-m", "loadtest.phases"], cwd=HERE, input=told.encode(), stdout=subprocess.PIPE,
            timeout=arguments["seconds"] * 3 + SPARE_SECONDS, check=True,
        )  # fmt: skip
    return {"clients": json.loads(done.stdout), "service": sampler.summary()}


def measure(form: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with (
        (folder / "log.txt").open("wb") as log,
        settings_of(form, folder / "home", POSTGRES, REDIS) as values,
        Service(values, log) as service,
    ):
        note(f"{form}: starting it, training a job and copying it {options.jobs} times")
        processes = options.api_processes or FORMS[form]
        service.start(processes)
        template = service.train(SPEC | {"stages": [{"epochs": 10}], "baseline": True})
        waiting = max(options.streams // 2, min(WAITING_MOST, options.jobs // WAITING_SHARE))
        filled = fill(service.database, template, options.jobs, waiting)
        found: dict[str, Any] = {"api_processes": processes, "jobs": filled.jobs, "queued_before": waiting,
                                 "filled_in_seconds": round(filled.seconds, 1)}  # fmt: skip
        found["post"] = run_phase(service, "post", seconds=options.post_seconds)
        known = {"finished": filled.finished, "waiting": filled.waiting, "teams": filled.teams}
        found["crowd"] = run_phase(
            service, "crowd", clients=options.clients, seconds=options.seconds, pause=options.pause, **known
        )
        if processes > 1:
            service.restart_api(1)
        found["streams"] = run_phase(
            service, "streams", waiting=filled.waiting, number=options.streams, seconds=options.stream_seconds
        )
        return found


def parts(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the clients saw, phase by phase."""
    return result["post"]["clients"] | {phase: result[phase]["clients"] for phase in ("crowd", "streams")}


def show(form: str, result: dict[str, Any]) -> None:
    """The tables, for people."""
    print(f"\n{form}: {result['jobs']} jobs, filled in {result['filled_in_seconds']} s")
    print(f"{'':52}{'count':>8}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}  ms")
    for phase, part in parts(result).items():
        share = part["clients"]["cpu_share_of_one_core"]
        print(f"{phase}: {part['requests']} requests in {part['seconds']} s, {part['per_second']}/s, "
              f"{part['errors']} errors; the clients used {share:.0%} of a core")  # fmt: skip
        for kind, row in part["milliseconds"].items():
            print(f"  {kind:50}{row['count']:8}" + "".join(f"{row[q]:9.1f}" for q in ("p50", "p95", "p99", "max")))
        for fault in part["faults"]:
            print(f"  ! {fault}")
    for phase in ("post", "crowd", "streams"):
        used = result[phase]["service"]
        if used["database_connections_most"] is None:
            print(f"{phase}: SQLite's write-ahead log has {used['write_ahead_log_mib']} MiB")
        else:
            print(
                f"{phase}: at most {used['database_connections_most']} database connections at once, "
                f"{used['database_connections_opened']} were opened"
            )
        for name, row in used["processes"].items():
            print(f"  {name:12} {row['mib_start']:7.0f} -> {row['mib_middle']:7.0f} -> {row['mib_end']:7.0f} MiB, "
                  f"{row['growth_in_last_half']:+.1%} in the last half; {row['open_files_most']} files, "
                  f"{row['cpu_share_of_one_core']:.0%} of a core")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="How the service bears a crowd.")
    parser.add_argument("--form", choices=sorted(FORMS), help="only this one")
    parser.add_argument("--api-processes", type=int, help="left out: 1 embedded, 2 deployed")
    parser.add_argument("--jobs", type=int, default=100_000, help="in the table before it begins")
    parser.add_argument("--clients", type=int, default=200, help="half of them poll, half stream")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between a poller's requests")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the crowd")
    parser.add_argument("--post-seconds", type=float, default=10.0, help="of submissions, by one client and by 16")
    parser.add_argument("--streams", type=int, default=1_000, help="open at once")
    parser.add_argument("--stream-seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    options.out = options.out and options.out.absolute()
    begun, forms = time.monotonic(), {}
    for form in [options.form] if options.form else list(FORMS):
        with tempfile.TemporaryDirectory(prefix="distillery-load-") as folder:
            forms[form] = measure(form, options, Path(folder))
        show(form, forms[form])
    errors = sum(part["errors"] for result in forms.values() for part in parts(result).values())
    told = about(" ".join(["python", "benchmarks/load.py", *sys.argv[1:]]), *WORDS)
    told |= {"errors": errors, "minutes": round((time.monotonic() - begun) / 60, 1), "forms": forms}
    print(f"\n{errors} errors, {told['minutes']} minutes")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
