"""Watches over one attempt: renews its lease, relays requests, and ends the process group when it must."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import structlog
from sqlalchemy import select

from kdcore.memory import KEPT, PROCESS, SMALLER, Need
from kdcore.reporter import Request
from storage import attempts
from storage.errors import StaleAttemptError
from storage.tables import Job
from worker.ledger import AWAY, Ledger
from worker.memory import machine_memory, oom_kills, ran_out
from worker.process import TrainingProcess
from worker.wire import STRENGTH

CANCEL_SECONDS = 0.5
"""After which a cancelled process is killed: it has nothing to save."""
MEMORY_SECONDS = 1.0
DRAIN_PATIENCE_SECONDS = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Limits:
    """What is left to this attempt of what its job may use: seconds, and bytes of resident memory."""

    seconds: float
    max_seconds: float
    max_memory: int | None
    need: Need | None = None
    """Of memory, as planned."""
    batch_size: int = 0
    """The largest of the job's stages."""
    of_check: bool = False
    """Whether they are the operator's, for the check of an upload."""

    def overtime(self) -> str:
        if self.of_check:
            return f"the check took longer than {self.max_seconds:g} s (check_seconds): upload less at once"
        return f"the job used its {self.max_seconds:g} s of training time (limits.max_seconds)"

    def overweight(self, used: int) -> str:
        """Of `max_memory`."""
        assert self.max_memory is not None
        if self.of_check:
            return f"the check used {used} bytes of memory (check_memory_bytes: {self.max_memory}): upload less at once"
        what = f"training used {used} bytes of memory, limits.max_memory is {self.max_memory}"
        return f"{what}; {self.advise(self.max_memory)}"

    def advise(self, memory: int) -> str:
        """What to do about a job for which so many resident bytes were not enough: what it keeps is among them."""
        return self.need.advise(self.batch_size, memory - PROCESS - KEPT) if self.need is not None else SMALLER


@dataclass(frozen=True)
class Verdict:
    """That training must end now, and what becomes of its attempt."""

    outcome: Literal["stale", "fail", "release", "give_up"]
    code: str
    message: str = ""


class Supervisor:
    """Call `run` once; when it returns, nothing of the process is left.

    Args:
        draining: whether the worker is about to end.
        meanwhile: called between two looks.
    """

    def __init__(
        self,
        ledger: Ledger,
        process: TrainingProcess,
        limits: Limits,
        draining: Callable[[], bool],
        meanwhile: Callable[[float], None],
    ) -> None:
        self._ledger, self._settings, self._process, self._limits = ledger, ledger.settings, process, limits
        self._draining, self._meanwhile = draining, meanwhile
        self._began = self._renewed = time.monotonic()
        self._beat = self._weighed = float("-inf")
        self._asked: Request | None = None
        self._asked_at = self._drained_by = float("inf")
        self._kills = oom_kills()

    def run(self) -> None:
        """Until the attempt is over, in the database as well."""
        verdict, status = None, None
        try:
            while verdict is None and status is None:
                verdict = self._judge()
                if verdict is None:
                    self._meanwhile(time.monotonic() - self._began)
                    status = self._process.wait(self._settings.poll_seconds)
        finally:
            self._process.kill()
        self._conclude(verdict or self._account_for(cast(int, status)))

    def _judge(self) -> Verdict | None:
        now = time.monotonic()
        try:
            wanted = self._look(now)
        except StaleAttemptError:
            return Verdict("stale", "stale")
        except AWAY as error:
            log.warning("database_away", error=type(error).__name__)
            if now - self._renewed > self._settings.lease_seconds:
                return Verdict("release", "lease_lost", "the database was away for longer than the lease")
            wanted = None
        if isinstance(wanted, Verdict):
            return wanted
        return self._relay(wanted, now) or self._check_limits(now)

    def _look(self, now: float) -> Request | Verdict | None:
        """What the job's user wants; renews the lease when it is time."""
        fence, settings = self._ledger.fence, self._settings
        if now - self._beat < settings.heartbeat_seconds:
            with self._ledger.database.read() as session:
                row = session.execute(select(Job.request).where(fence.holds())).one_or_none()
            if row is None:
                raise StaleAttemptError(fence.job_id)
            return cast("Request | None", row.request)
        with self._ledger.database.write() as session:
            pulse = attempts.heartbeat(session, fence, settings.lease_seconds)
        self._beat = self._renewed = now
        if pulse.idle_seconds > settings.stall_seconds:
            return Verdict("release", "stalled", f"training made no step for {pulse.idle_seconds:.0f} s")
        return cast("Request | None", pulse.request)

    def _relay(self, wanted: Request | None, now: float) -> Verdict | None:
        """Pass a new request on; grant it by force when training does not."""
        if self._draining():
            wanted = wanted or "drain"
            self._drained_by = min(self._drained_by, now + self._settings.drain_seconds)
        if STRENGTH[wanted] > STRENGTH[self._asked]:
            assert wanted is not None
            self._asked, self._asked_at = wanted, now
            self._process.ask(wanted)
        if self._is_overdue(now):
            return Verdict("give_up", str(self._asked))
        return None

    def _is_overdue(self, now: float) -> bool:
        """Whether training has had its time to grant what it was asked for.

        A worker that ends takes its job with it, a user who pauses one can wait: however long a checkpoint takes to
        write, no step is lost. Only what has not begun to train has nothing to write.
        """
        if now > self._drained_by:
            return True
        waited, settings = now - self._asked_at, self._settings
        match self._asked:
            case "cancel":
                return waited > CANCEL_SECONDS
            case "pause" if waited > settings.drain_seconds:
                return waited > settings.stall_seconds or not self._has_begun()
        return False

    def _has_begun(self) -> bool:
        try:
            with self._ledger.database.read() as session:
                return attempts.has_begun(session, self._ledger.fence.job_id, self._ledger.fence.attempt)
        except AWAY:
            return True

    def _check_limits(self, now: float) -> Verdict | None:
        limits = self._limits
        if now - self._began > limits.seconds:
            return Verdict("fail", "time_limit", limits.overtime())
        if limits.max_memory is not None and now - self._weighed >= MEMORY_SECONDS:
            self._weighed = now
            used = self._process.memory_bytes()
            if used > limits.max_memory:
                return Verdict("fail", "out_of_memory", limits.overweight(used))
        return None

    def _account_for(self, status: int) -> Verdict:
        """For a process that ended by itself: nothing more to do if it ended its attempt, too."""
        if status >= 0:
            last = self._process.last_line()
            return Verdict("release", "crashed", f"training ended with exit status {status}: {last}".rstrip(": "))
        memory = machine_memory()
        if status == -signal.SIGKILL and ran_out(self._limits.need, memory, self._kills):
            message = f"the kernel ended training: it needs more than the machine's {memory} bytes of memory"
            return Verdict("fail", "out_of_memory", f"{message}; {self._limits.advise(memory)}")
        name = signal.Signals(-status).name
        hint = "; most likely the kernel did, because memory ran out" if -status == signal.SIGKILL else ""
        return Verdict("release", "killed", f"training was killed by {name}{hint}")

    def _conclude(self, verdict: Verdict) -> None:
        if verdict.outcome == "stale":
            log.info("attempt_over")  # training ended it itself, or lost it
            return
        if self._draining():
            self._ledger.patience = min(self._ledger.patience, DRAIN_PATIENCE_SECONDS)
        try:
            match verdict.outcome:
                case "fail":
                    self._ledger.fail(verdict.code, verdict.message)
                case "release":
                    self._ledger.release(verdict.code, verdict.message)
                case "give_up":
                    self._ledger.give_up(verdict.code)
        except StaleAttemptError:
            log.info("attempt_over")
            return
        except AWAY:
            log.warning("attempt_left_to_the_lease", code=verdict.code)
            return
        log.info("attempt_ended", outcome=verdict.outcome, code=verdict.code, message=verdict.message)
