"""What was asked, how long it took, and what went wrong."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psutil

KEPT_FAULTS = 20


@dataclass
class Tally:
    """Of one phase, as the clients saw it."""

    begun: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=time.process_time)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    errors: int = 0

    def took(self, kind: str, seconds: float) -> None:
        self.seconds.setdefault(kind, []).append(seconds)

    def wrong(self, what: str) -> None:
        """Anything that should not have happened: a 5xx, an exception, a wrong answer."""
        self.errors += 1
        if len(self.faults) < KEPT_FAULTS:
            self.faults.append(what)

    def summary(self, **more: Any) -> dict[str, Any]:
        wall = time.monotonic() - self.begun
        return {
            "seconds": round(wall, 2),
            "requests": self.answers.total(),
            "per_second": round(self.answers.total() / wall, 1),
            "answers": dict(sorted(self.answers.items())),
            "errors": self.errors,
            "faults": self.faults,
            "milliseconds": {kind: quantiles(values) for kind, values in sorted(self.seconds.items())},
            "clients": {
                "cpu_share_of_one_core": round((time.process_time() - self.cpu) / wall, 3),
                "resident_mib": round(psutil.Process().memory_info().rss / 2**20, 1),
            },
            **more,
        }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Number and quantiles in milliseconds, each of them a value that was measured."""
    ordered = sorted(seconds)
    found = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 95, 99)}
    milliseconds = {name: round(value * 1e3, 2) for name, value in (found | {"max": ordered[-1]}).items()}
    return {"count": len(ordered), **milliseconds}
