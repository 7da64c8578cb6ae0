"""`make demo`: the whole way once, on this machine, with nothing running before or after.

Exit codes: 0 the student is there and works; 1 something failed; 130 interrupted.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillery import showing
from distillery.client import Client
from distillery.embedded import Embedded
from distillery.errors import ApiError, DistilleryError, JobFailed
from distillery.service import WRONG, read_settings
from distillery.watching import watch

TAIL_LINES = 40
BATCH = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m distillery.demo", description="Distil one student, start to end.")
    parser.add_argument("job", type=Path, nargs="?", default=Path("examples/digits-mlp.yaml"), help="the spec")
    parser.add_argument("--out", type=Path, default=Path("student"), help="where the student goes (default: student)")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="distillery-demo-", ignore_cleanup_errors=True) as home:
            return _run(options.job, options.out, Path(home))
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was left running", file=sys.stderr)
        return 130
    except (DistilleryError, OSError) as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return 1


def _run(job_file: Path, out: Path, home: Path) -> int:
    if not job_file.is_file():
        raise DistilleryError(f"there is no file {job_file}")
    settings = _settings(home)
    if settings is None:
        return WRONG
    log = home / "service.log"
    print(f"starting the service in {home}", flush=True)
    with log.open("wb") as output:
        service = Embedded(settings, output)
        try:
            service.start()
            with Client(service.url) as client:
                job = _distil(client, job_file, out)
        except (DistilleryError, OSError) as error:
            if not _is_the_job_s_own(error):
                output.flush()
                _print_tail("the service's log", log.read_text(errors="replace"))
            raise
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # ending is bounded, and must not be cut short
            service.stop()
            signal.signal(signal.SIGINT, signal.default_int_handler)
    _conclude(job, job_file, out, settings.data)
    return 0


def _is_the_job_s_own(error: Exception) -> bool:
    """Whether the spec or its data is to blame: then the service's log says nothing more."""
    if isinstance(error, JobFailed):
        return bool((error.job.get("error") or {}).get("kind") == "user")
    return isinstance(error, ApiError) and error.status == 422


def _settings(home: Path) -> Any:
    """The embedded form with the user's own settings where they do not stand in its way; None where one is wrong."""
    return read_settings(
        home=home,
        host="127.0.0.1",
        port=0,
        database_url=None,
        broker_url=None,
        api_keys={},
        api_processes=1,
        drain_seconds=2.0,
    )


def _distil(client: Client, job_file: Path, out: Path) -> dict[str, Any]:
    job = client.submit(job_file)
    print(f"submitted {job_file} to {client.base_url} as {job['id']}", flush=True)
    job = watch(client, job["id"])
    if job["status"] != "succeeded":
        _print_tail("what training printed", client.logs(job["id"]))
        raise JobFailed(job)
    files = client.download(job["id"], out)
    print(f"downloaded {len(files)} files into {out}", flush=True)
    return job


def _conclude(job: dict[str, Any], job_file: Path, out: Path, data: Path) -> None:
    images, accuracy = _try_student(job["spec"], out, data)
    result = showing.read_result(out)
    showing.print_table(result)
    print(f"\n{result['summary']}")
    print(
        f"{out / 'student.onnx'}, run by onnxruntime on {len(images):,} test images here: accuracy {accuracy:.4f}"
        f" (the service measured {result['student']['accuracy']:.4f}).\n"
    )
    print(showing.next_steps(job_file, out, images.shape[1:], data))


def _try_student(spec: dict[str, Any], out: Path, data: Path) -> Any:
    """Run the downloaded ONNX file on the test images; they and its accuracy."""
    import numpy as np
    import onnxruntime

    from kdcore.data import Places
    from kdcore.spec import parse_spec

    dataset = parse_spec(spec).data.load(Places(data))
    images = dataset.test.inputs[:].numpy().astype(np.float32) / np.float32(dataset.scale)
    labels = dataset.test.labels.numpy()
    runtime = onnxruntime.InferenceSession(str(out / "student.onnx"), providers=["CPUExecutionProvider"])
    right = 0
    for start in range(0, len(images), BATCH):
        logits = np.asarray(runtime.run(["logits"], {"input": images[start : start + BATCH]})[0])
        right += int((logits.argmax(1) == labels[start : start + BATCH]).sum())
    return images, right / len(images)


def _print_tail(title: str, text: str) -> None:
    lines = text.splitlines()[-TAIL_LINES:]
    if not lines:
        return
    print("\n".join([f"--- {title}:", *lines, "---"]), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
