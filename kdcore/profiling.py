"""Where a step's time goes: a trace of a few steps, which Perfetto shows, and a table of their parts.

The loop is not cut up for it: for those steps the parts that it calls are wrapped, and left as they were afterwards.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from kdcore.job import Job
from kdcore.stages import Stage
from kdcore.state import Training
from kdcore.targets import Targets

WARM_UP = 5
"""Steps that are not recorded: the first ones allocate, and load libraries."""
STEPS = 10
"""That are recorded."""
SECONDS = 20.0
"""After which no other step is begun to be recorded."""
MOST_BYTES = 32 * 2**20
"""Of a trace, compressed."""
OPERATIONS = 25
"""That take most, in the table."""
STEP = "step"
BACKWARD = "autograd::engine::evaluate_function"
"""What torch itself calls them."""


@contextmanager
def profiled(job: Job, stage: Stage, training: Training, targets: Targets, out: Path) -> Iterator[None]:
    """Record a few steps of what runs inside, where the spec asks for it, and write them into `out`: of the first stage
    of each role. What cannot be written fails no job."""
    first = next(each for each in job.stages if each.role == stage.role)
    if not job.spec.profile or stage != first:
        yield
        return
    left = stage.train.epochs * job.steps_per_epoch(stage) - job.state.step
    record = _Record(on_cuda=job.device.type == "cuda", skip=min(WARM_UP, left // 2))
    parts = [(targets, "of", "teachers"), (training.model, "views", "student, forward"), (job, "predict", "validation")]
    parts.append((training.update, "make", "optimizer"))
    terms = zip(training.terms, stage.losses, strict=True)
    parts += [(term, "forward", f"loss {loss.type}") for term, loss in terms]
    with ExitStack() as wrapped:
        for owner, method, label in parts:
            wrapped.enter_context(record.part(owner, method, label))
        wrapped.callback(record.stop)
        with job.session.watched(record.step_done):
            yield
    _write(job, stage.name, record, out)


class _Record:
    """The steps that are recorded, and the parts of them that have a name."""

    def __init__(self, *, on_cuda: bool, skip: int) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        self.trace = profile(activities=activities)
        self.on_cuda, self.steps, self.labels = on_cuda, 0, [STEP]
        self._skip, self._inside = skip, False
        self._step: record_function | None = None
        self._began: float | None = None
        self._is_over = False

    def step_done(self) -> None:
        """Begin, go on to the next step, or end."""
        if self._skip:
            self._skip -= 1
        elif self._step is not None:
            self._step.__exit__(None, None, None)
            self.steps += 1
            self._step = None
        if self._is_over or self._skip:
            return
        if self._began is None:
            self._began = time.monotonic()
            self.trace.start()
        elif self.steps == STEPS or time.monotonic() - self._began > SECONDS:
            return self.stop()
        self._step = record_function(STEP)
        self._step.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """A step that is not complete is not counted."""
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
        if not self._is_over and self._began is not None:
            self.trace.stop()
        self._is_over = True

    @contextmanager
    def part(self, owner: Any, method: str, label: str) -> Iterator[None]:
        """The time in which what a method of `owner` does in a step has that name, unless another part calls it."""
        original: Callable[..., Any] = getattr(owner, method)
        self.labels.append(label)

        def named(*arguments: Any) -> Any:
            if self._step is None or self._inside:
                return original(*arguments)
            self._inside = True
            try:
                with record_function(label):
                    return original(*arguments)
            finally:
                self._inside = False

        setattr(owner, method, named)
        try:
            yield
        finally:
            delattr(owner, method)


def _write(job: Job, stage: str, record: _Record, out: Path) -> None:
    name = f"profile-{stage}"
    if not record.steps:
        job.reporter.event("file_left_out", {"name": name, "reason": "this attempt made too few steps of the stage"})
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{name}.json.gz"
        record.trace.export_chrome_trace(str(path))
        (out / f"{name}.txt").write_text(table(stage, record), encoding="utf-8")
        if path.stat().st_size > MOST_BYTES:
            path.unlink()
            reason = f"it is larger than {MOST_BYTES:,} bytes"
            job.reporter.event("file_left_out", {"name": path.name, "reason": reason})
    except (OSError, RuntimeError) as error:
        for path in out.glob(f"{name}.*"):
            path.unlink(missing_ok=True)
        job.reporter.event("file_left_out", {"name": name, "reason": str(error)})


def table(stage: str, record: _Record) -> str:
    """What the parts of a step take, of the process's time on the CPU's clock, and below that the operations that take
    most. Beside a GPU a part's time is that of starting its work."""
    averages = record.trace.key_averages()
    spent = {each.key: each.cpu_time_total / 1000 / record.steps for each in averages}  # µs of all -> ms of a step
    backward = sum(took for key, took in spent.items() if key.startswith(BACKWARD))
    validation = spent.get("validation", 0.0)
    whole = spent[STEP] - validation
    parts = {label: spent.get(label, 0.0) for label in record.labels if label not in (STEP, "validation")}
    parts["backward"] = backward
    parts["everything else"] = max(0.0, whole - sum(parts.values()))
    width = max(map(len, parts))
    lines = [f"{label:{width}}  {took:10.3f} ms  {took / whole:6.1%}" for label, took in parts.items()]
    by = "self_cuda_time_total" if record.on_cuda else "self_cpu_time_total"
    head = f"{stage}: {record.steps} steps of {whole:.3f} ms, validation left out"
    return "\n".join([head, "", *lines, "", averages.table(sort_by=by, row_limit=OPERATIONS)])
