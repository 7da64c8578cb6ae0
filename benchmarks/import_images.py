"""What a large data set costs while it is imported: the memory of API and worker, from its upload to its first batch.

    python benchmarks/import_images.py [--megabytes 10240] [--form embedded|deployed] [--size 64] [--train 1000]

Makes a zip of PNG pictures of 1 MiB each, starts a service of its own, uploads the zip in parts, waits for its check,
and trains one epoch on it, for which it is decoded into the worker's cache. All the while the resident memory of every
process is looked at. Needs three times the archive's size on the disk.
"""

import argparse
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from loadtest.service import MIB, Service, settings_of
from PIL import Image

from distillery import Client
from worker.device import cpu_name

POSTGRES = os.environ.get("DISTILLERY_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("DISTILLERY_TEST_REDIS", "redis://127.0.0.1:6379/0")
SIDE, CLASSES, DIFFERENT = 592, 10, 40
IDLE_SECONDS, SAMPLE_SECONDS, KEPT = 10.0, 0.5, 20
COPIES = 3
"""Of the archive on the disk: itself, its parts, the file that these are joined to."""
PLAN: dict[str, Any] = {
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp", "hidden": [8]}}],
    "student": {"model": {"type": "mlp", "hidden": [4]}},
}


def job(dataset: str, pictures: int, size: int, train: int) -> dict[str, Any]:
    """It decodes all of the data set to `size` pixels, and learns from `train` pictures of it, if there are so many."""
    small = {"epochs": 1, "batch_size": 64}
    return {
        "data": {
            "type": "upload",
            "dataset": dataset,
            "size": size,
            "train_samples": min(train, pictures // 2),
            "validation": 50,
        },
        "teachers": [{"model": {"type": "cnn", "channels": [8], "hidden": []}, "train": small}],
        "student": {"model": {"type": "cnn", "channels": [4], "hidden": []}},
        "stages": [small],
        "baseline": False,
    }


def note(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def make_archive(path: Path, size: int) -> int:
    """Pictures of noise, a folder for each class; how many. Each ends in bytes of its own, so that no two are equal."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(DIFFERENT):
        file = io.BytesIO()
        noise = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file, "png", compress_level=0)
        files.append(file.getvalue())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        count = size // len(files[0])
        for number in range(count):
            name = f"pictures/class-{number % CLASSES}/{number:07}.png"
            archive.writestr(name, files[number % DIFFERENT] + number.to_bytes(8, "big"))
    return count


def role(process: psutil.Process) -> str | None:
    """API, worker, or the process that checks and trains; None for what helps them."""
    words = process.cmdline()
    if "worker.training" in words:
        return "training"
    return next((name for name in ("api", "worker") if "distillery" in words and name in words), None)


class Memory:
    """Resident MiB of the service's processes by role, looked at twice a second; of several of a role the largest.

    `training_own` leaves out the pages of files that are mapped, which the system takes back when it needs them.
    """

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, Any]] = {}
        self._stopped = threading.Event()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        samples: list[dict[str, float]] = []
        self._stopped.clear()
        thread = threading.Thread(target=self._look, args=(samples,), daemon=True)
        note(name)
        begun = time.monotonic()
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()
        seen = sorted({key for sample in samples for key in sample})
        roles = {key: _summary([sample[key] for sample in samples if key in sample]) for key in seen}
        self.phases[name] = {"seconds": round(time.monotonic() - begun, 1), "mib": roles}

    def _look(self, samples: list[dict[str, float]]) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            found: dict[str, float] = {}
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    name, memory = role(process), process.memory_info()
                    if name is not None:
                        found[name] = max(found.get(name, 0.0), memory.rss / MIB)
                    if name == "training":
                        own = (memory.rss - memory.shared) / MIB
                        found["training_own"] = max(found.get("training_own", 0.0), own)
            samples.append(found)


def _summary(values: list[float]) -> dict[str, Any]:
    step = max(1, len(values) // KEPT)
    return {
        "start": round(values[0], 1), "most": round(max(values), 1), "end": round(values[-1], 1),
        "over_time": [round(value) for value in values[::step]],
    }  # fmt: skip


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    archive, memory = folder / "pictures.zip", Memory()
    note(f"{options.megabytes} MiB of pictures")
    count = make_archive(archive, options.megabytes * MIB)
    with (
        (folder / "log.txt").open("wb") as log,
        settings_of(options.form, folder / "home", POSTGRES, REDIS) as values,
        Service(values, log) as service,
        Client(f"http://{service.host}:{service.port}") as client,
    ):
        service.start(1)
        client.plan(PLAN)  # so that all which an API process ever loads is loaded
        with memory.phase("idle"):
            time.sleep(IDLE_SECONDS)
        with memory.phase("upload"):
            upload = client.datasets.upload(archive, "pictures", wait=False)
        with memory.phase("check"):
            profile = client.datasets.wait(upload["id"])["profile"]
        with memory.phase("prepare and train"):
            client.wait(client.submit(job(upload["id"], count, options.size, options.train))["id"])
        prepared = sum(path.stat().st_size for path in service.settings.cache.rglob("*") if path.is_file())
    found = {"bytes": upload["size"], "pictures": count, "parts": upload["parts"], "prepared_bytes": prepared}
    return found | {"samples": profile["samples"], "phases": memory.phases}


def print_table(phases: dict[str, Any]) -> None:
    roles = ("api", "worker", "training", "training_own")
    print(f"{'phase':18} {'seconds':>8}" + "".join(f" {name + ', MiB':>22}" for name in roles))
    for name, phase in phases.items():
        cells = [phase["mib"].get(each) for each in roles]
        shown = [f"{each['start']:.0f} · {each['most']:.0f} · {each['end']:.0f}" if each else "" for each in cells]
        print(f"{name:18} {phase['seconds']:8.1f}" + "".join(f" {each:>22}" for each in shown))
    print("each: at the beginning, the most, in the end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=10_240)
    parser.add_argument("--size", type=int, default=64, help="pixels that pictures are made to have")
    parser.add_argument("--train", type=int, default=1000, help="pictures that are trained on")
    parser.add_argument("--form", choices=("embedded", "deployed"), default="embedded")
    parser.add_argument("--folder", type=Path, help="where the archive and the service's files go, for the time")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "import.json")
    options = parser.parse_args()
    needed, free = COPIES * options.megabytes * MIB, shutil.disk_usage(options.folder or tempfile.gettempdir()).free
    if needed > free * 0.9:
        sys.exit(f"{needed / 2**30:.0f} GiB are needed and {free / 2**30:.0f} are free: take --megabytes or --folder")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(options, Path(folder))
    print_table(found["phases"])
    versions = {name: version(name) for name in ("fastapi", "pillow", "torch", "uvicorn")}
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(), **versions,
               "load_average": os.getloadavg()}  # fmt: skip
    command = f"python benchmarks/import_images.py --megabytes {options.megabytes} --form {options.form}"
    command += f" --size {options.size} --train {options.train}"
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"command": command, "machine": machine, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
