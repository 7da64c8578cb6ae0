"""What the service adds to a job: until its first step, and from submission to student, beside `python -m kdcore`.

    python benchmarks/service.py [--form embedded|deployed] [--rounds 5] [--jobs 3] [--epochs 60] [--out FILE]

A service of its own (the deployed one at DISTILLERY_TEST_POSTGRES and DISTILLERY_TEST_REDIS), with one worker:

- from POST until the loop begins its first step (what training prints, read from its log), with a warm spare and
  without; digits, whose data lies on the disk already. The spare has come to rest before each submission.
- the same job through the service (POST until its end is known to a client that waits) and by `python -m kdcore` (a
  process from its start to its end), in turn. Both must make the same student.
"""

import argparse
import contextlib
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from about import about, end_tidily, result_path
from load import FORMS, POSTGRES, REDIS, note
from loadtest.clients import SPEC
from loadtest.service import Service, settings_of

TARGETS = {"warm_seconds": 0.5, "cold_seconds": 5.0, "over_kdcore_share": 0.02, "over_kdcore_seconds": 0.5}
BEGUN = b"samples/s"
"""In the first line that a training process prints of the loop."""
JOB_SECONDS, LOOK_SECONDS, STILL_SECONDS = 280.0, 0.002, 1.0
STUDENT = "student.safetensors"
LONG: dict[str, Any] = {
    "name": "long",
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp", "hidden": [512, 512]}, "train": {"epochs": 20}}],
    "student": {"model": {"type": "mlp", "hidden": [64, 64]}},
    "stages": [{"epochs": 60, "batch_size": 32, "optimizer": {"type": "adam", "lr": 1e-3}}],
}


@contextlib.contextmanager
def running(form: str, folder: Path, *, spare: bool) -> Iterator[Service]:
    with (
        (folder / "log.txt").open("ab") as log,
        settings_of(form, folder / "home", POSTGRES, REDIS) as values,
        Service(values | {"warm_spare": str(spare).lower()}, log) as service,
    ):
        service.start(1)
        yield service


def rest(service: Service) -> None:
    """Until nothing trains and whatever imports torch has done so."""
    end, used = time.monotonic() + JOB_SECONDS, -1.0
    while time.monotonic() < end:
        before, used = used, sum(sum(process.cpu_times()[:2]) for process in trainings(service))
        idle = all(worker["status"] == "idle" for worker in service.http.get("/workers").json()["data"])
        if idle and len(trainings(service)) == int(service.settings.warm_spare) and used - before < LOOK_SECONDS:
            return
        time.sleep(STILL_SECONDS)
    raise TimeoutError("the worker did not come to rest")


def trainings(service: Service) -> list[psutil.Process]:
    """Training processes, a spare among them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [process] if "worker.training" in process.cmdline() else []
    return found


def first_step(service: Service, number: int) -> float:
    """Seconds from the submission until the loop begins."""
    rest(service)
    begun = time.perf_counter()
    job_id = service.http.post("/jobs", json=SPEC | {"seed": number}).raise_for_status().json()["id"]
    log = service.settings.jobs / job_id / "attempt-1" / "log.txt"
    while not (log.exists() and BEGUN in log.read_bytes()):
        if time.perf_counter() - begun > JOB_SECONDS:
            raise TimeoutError(f"{job_id} did not begin")
        time.sleep(LOOK_SECONDS)
    seconds = time.perf_counter() - begun
    finish(service, job_id)
    return seconds


def finish(service: Service, job_id: str) -> None:
    end = time.monotonic() + JOB_SECONDS
    while (job := service.http.get(f"/jobs/{job_id}", params={"wait": 30}).json())["status"] != "succeeded":
        if time.monotonic() > end or job["status"] in ("failed", "cancelled"):
            raise RuntimeError(f"{job_id} is {job['status']}: {job['error']}")


def by_service(service: Service, spec: dict[str, Any]) -> tuple[float, str]:
    """Seconds of a job, and the digest of its student."""
    rest(service)
    begun = time.perf_counter()
    job_id = service.http.post("/jobs", json=spec).raise_for_status().json()["id"]
    finish(service, job_id)
    seconds = time.perf_counter() - begun
    files = service.http.get(f"/jobs/{job_id}/artifacts").json()["data"]
    return seconds, next(file["digest"] for file in files if file["name"] == STUDENT)


def by_kdcore(spec: dict[str, Any], folder: Path, number: int) -> tuple[float, str]:
    """The same without the service."""
    file, out = folder / "job.json", folder / f"out-{number}"
    file.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "kdcore", str(file), "--out", str(out), "--data", str(folder), "--no-download"]
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=JOB_SECONDS)
    seconds = time.perf_counter() - begun
    return seconds, "sha256:" + hashlib.sha256((out / STUDENT).read_bytes()).hexdigest()


def measure(form: str, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, spare in (("cold", False), ("warm", True)):
        note(f"{form}: until the first step, {name}")
        with tempfile.TemporaryDirectory(prefix="distillery-service-") as name_of, contextlib.ExitStack() as stack:
            folder = Path(name_of)
            service = stack.enter_context(running(form, folder, spare=spare))
            first_step(service, 0)  # the first plan of an API and the first read of the data are not what is measured
            times = [first_step(service, number) for number in range(1, options.rounds + 1)]
            found[f"{name}_seconds"] = {"median": statistics.median(times), "each": times}
            if not spare:
                continue
            note(f"{form}: whole jobs")
            spec, pairs = LONG | {"stages": [LONG["stages"][0] | {"epochs": options.epochs}]}, []
            for number in range(options.jobs):
                mine, student = by_service(service, spec)
                alone, same = by_kdcore(spec, folder, number)
                pairs.append((mine, alone, student == same))
    over = [mine - alone for mine, alone, _ in pairs]
    return found | {
        "service_seconds": [mine for mine, _, _ in pairs],
        "kdcore_seconds": [alone for _, alone, _ in pairs],
        "over_kdcore_seconds": statistics.median(over),
        "allowed_seconds": TARGETS["over_kdcore_seconds"]
        + TARGETS["over_kdcore_share"] * statistics.median(alone for _, alone, _ in pairs),
        "same_student": all(same for _, _, same in pairs),
    }


def show(form: str, found: dict[str, Any]) -> None:
    for name in ("warm", "cold"):
        times, wanted = found[f"{name}_seconds"], TARGETS[f"{name}_seconds"]
        print(f"{form:10} POST to first step, {name}: {times['median']:.2f} s (at most {wanted:g} wanted), "
              f"worst {max(times['each']):.2f} s")  # fmt: skip
    print(f"{form:10} whole job: {statistics.median(found['service_seconds']):.2f} s, by `python -m kdcore` "
          f"{statistics.median(found['kdcore_seconds']):.2f} s: {found['over_kdcore_seconds']:+.2f} s "
          f"(at most {found['allowed_seconds']:+.2f} wanted); the same student: {found['same_student']}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=sorted(FORMS), help="only this one")
    parser.add_argument("--rounds", type=int, default=5, help="submissions with a spare, and as many without")
    parser.add_argument("--jobs", type=int, default=3, help="whole jobs of each kind")
    parser.add_argument("--epochs", type=int, default=60, help="of the whole job's student")
    parser.add_argument("--out", type=Path, default=result_path("service"))
    options, forms = parser.parse_args(), {}
    end_tidily()
    options.out = options.out.absolute()
    for form in [options.form] if options.form else list(FORMS):
        forms[form] = measure(form, options)
        show(form, forms[form])
    told = about(" ".join(["python", "benchmarks/service.py", *sys.argv[1:]]), "torch", "celery", "fastapi")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told | {"targets": TARGETS, "forms": forms}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
