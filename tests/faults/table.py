"""The table of faults by times injected and recovery time: `python -m tests.faults.table outcome.json …`."""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.faults.rounds import Outcome, Recovery


def render(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row for each fault, times and recovery in seconds (median / worst) by form, and the totals."""
    forms = sorted({outcome.form for outcome in outcomes})
    found: dict[tuple[str, str], dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        for recovery in outcome.recoveries:
            found[recovery.group, recovery.fault][outcome.form].append(recovery.seconds)
    lines = [
        "| | fault | " + " | ".join(f"{form}: times | median | worst" for form in forms) + " |",
        "| --- | --- |" + " ---: | ---: | ---: |" * len(forms),
    ]
    for (group, fault), by_form in sorted(found.items()):
        lines.append(f"| {group} | {fault} | " + " | ".join(_cells(by_form[form]) for form in forms) + " |")
    return "\n".join([*lines, "", *(_total(form, outcomes) for form in forms)])


def _cells(seconds: list[float | None]) -> str:
    known = [max(each, 0.0) for each in seconds if each is not None]
    if not seconds:
        return " | | "
    return f"{len(seconds)} | {median(known):.1f} | {max(known):.1f}" if known else f"{len(seconds)} | - | -"


def _total(form: str, outcomes: Sequence[Outcome]) -> str:
    mine = [outcome for outcome in outcomes if outcome.form == form]
    faults, jobs = sum(len(o.recoveries) for o in mine), sum(o.jobs for o in mine)
    violations, minutes = sum(len(o.violations) for o in mine), sum(o.seconds for o in mine) / 60
    rounds = f"{len(mine)} rounds ({minutes:.0f} minutes)"
    return f"{form}: {faults} faults over {jobs} jobs in {rounds}, {violations} violations."


def _read(document: dict[str, Any]) -> list[Outcome]:
    return [Outcome(**r | {"recoveries": [Recovery(**each) for each in r["recoveries"]]}) for r in document["rounds"]]


if __name__ == "__main__":
    print(render([outcome for path in sys.argv[1:] for outcome in _read(json.loads(Path(path).read_text()))]))
