"""The fault suite's command: `make faults`, or `python -m tests.faults --help`."""

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.fault import FAULTS, Fault
from tests.faults.jobs import SPECS, Undisturbed, run_undisturbed, taught
from tests.faults.rounds import CALM, Outcome, Pressure, Servers, choose, play
from tests.faults.servers import Postgres, Redis
from tests.faults.table import render


@dataclass(frozen=True)
class Mutation:
    """The house broken in one place.

    Args:
        fault: that must bring it to light, so many times.
        violation: a pattern of the sentence in which it must do so.
    """

    fault: str
    times: int
    violation: str


MUTATIONS = {
    "unfenced_finish": Mutation(
        "frozen past the lease between upload and publish", 3,
        r"succeeded, its last is|final events instead of|succeeded from (queued|succeeded|cancelled)",
    ),
    "artifacts_in_place": Mutation("killed inside an artifact's upload", 4, r": \S+ is damaged$"),
    "no_takeover": Mutation("everything killed at once (a reboot)", 2, r"is running, not terminal"),
}  # fmt: skip
HONEST_PATIENCE = 240.0
TRIES = 3
"""So often a fault may find no occasion, if it never does."""
POINTS = 500
"""The service's default `metric_points`."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: nothing was violated."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was started is stopped
    tell = print if not options.quiet else lambda line: None
    undisturbed = reference()
    if options.honesty:
        return _show_honesty(undisturbed, [options.mutate] if options.mutate else list(MUTATIONS))
    outcomes: list[Outcome] = []
    with servers_for(options.form) as servers:
        bag: list[Fault] = []
        for number in range(1, options.first + options.rounds):
            seed = options.seed * 1000 + number
            chosen = _chosen(options, seed, bag)
            if number < options.first:  # what later rounds get depends on what earlier ones got
                continue
            print(f"round {number} ({options.form}): {len(chosen)} faults, seed {seed}", flush=True)
            outcome = play(
                options.form, seed, chosen, undisturbed, servers,
                mutation=options.mutate, keep=options.keep, pressure=CALM if options.calm else None, tell=tell,
            )  # fmt: skip
            outcomes.append(outcome)
            _report(outcome, options, number)
            if options.json:
                _write(options.json, outcomes)
    print(render(outcomes))
    if dead := never(outcomes):
        print(f"never had an occasion, so that a trap may not attach any more: {', '.join(dead)}")
    return int(bool(dead) or any(outcome.violations for outcome in outcomes))


def never(outcomes: Sequence[Outcome]) -> list[str]:
    """Faults that were tried again and again and never happened."""
    missed = Counter(name for outcome in outcomes for name in outcome.missed)
    happened = {recovery.fault for outcome in outcomes for recovery in outcome.recoveries}
    return [name for name, times in missed.items() if times >= TRIES and name not in happened]


def _show_honesty(undisturbed: dict[str, Undisturbed], names: Sequence[str]) -> int:
    """Break the house in one place after the other; exit status 0 where every mutation was noticed for what it is,
    and nothing in the same round without it."""
    wrong = 0
    with servers_for("deployed") as servers:
        for name in names:
            mutation = MUTATIONS[name]
            for broken in (None, name):
                outcome = play(
                    "deployed", 1, [FAULTS[mutation.fault]] * mutation.times, undisturbed, servers,
                    mutation=broken, patience=HONEST_PATIENCE, pressure=Pressure(1, 4), tell=lambda line: None,
                )  # fmt: skip
                found = outcome.violations
                named = [violation for violation in found if re.search(mutation.violation, violation)]
                wrong += not named if broken else bool(found)
                print(
                    f"{mutation.fault!r} x {len(outcome.recoveries)}, {broken or 'the house as it is'}: "
                    f"{len(found)} violations, {len(named)} of them the mutation's", flush=True,
                )  # fmt: skip
                print("\n".join(f"  {violation[:200]}" for violation in (named or found)[:4]), flush=True)
    return int(wrong > 0)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--form", choices=("deployed", "embedded"), default="deployed")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="number of the first round, to replay a later one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=60, help="per round")
    parser.add_argument("--only", action="append", help="name of a fault, instead of a random choice; may be repeated")
    parser.add_argument("--mutate", choices=MUTATIONS, help="break the house in one place: the suite must notice")
    parser.add_argument("--json", type=Path, help="where the outcome of every round is written")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the rounds")
    parser.add_argument("--quiet", action="store_true", help="no line for every fault")
    parser.add_argument("--calm", action="store_true", help="one fault after the other, with time to recover")
    parser.add_argument("--honesty", action="store_true", help="see that the suite notices the mutation, or each")
    parser.add_argument("--list", action="store_true", help="the faults there are")
    options = parser.parse_args(arguments)
    if options.list:
        for fault in FAULTS.values():
            print(f"{fault.group:16}  {'+'.join(fault.forms):18}  {fault.name}")
        sys.exit(0)
    if unknown := set(options.only or ()) - FAULTS.keys():
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; --list names them all")
    return options


def _chosen(options: argparse.Namespace, seed: int, bag: list[Fault]) -> list[Fault]:
    rng = random.Random(seed)
    if options.only:
        return [FAULTS[options.only[number % len(options.only)]] for number in range(options.faults)]
    return choose(options.form, options.faults, rng, bag)


def reference() -> dict[str, Undisturbed]:
    """What every spec comes to, by name; an apprentice's teacher is not trained again."""
    found = {name: run_undisturbed(name, POINTS) for name in SPECS}
    return found | {f"{name}.taught": taught(found[name]) for name in SPECS}


@contextmanager
def servers_for(form: str) -> Iterator[Servers | None]:
    """PostgreSQL and Redis of the suite's own; none for the embedded form."""
    if form == "embedded":
        yield None
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-servers-")))
        yield Servers(stack.enter_context(Postgres(folder)), stack.enter_context(Redis(folder)))


def _report(outcome: Outcome, options: argparse.Namespace, number: int) -> None:
    print(
        f"round {number}: {len(outcome.recoveries)} faults over {outcome.jobs} jobs in {outcome.seconds:.0f} s, "
        f"{len(outcome.violations)} violations" + (f", no occasion for {outcome.missed}" if outcome.missed else ""),
        flush=True,
    )
    if outcome.violations:
        print("\n".join(f"  VIOLATION {violation}" for violation in outcome.violations))
        print(outcome.tail)
        again = [f"--{name} '{value}'" for name, value in (("form", options.form), ("seed", options.seed),
                 ("first", number), ("faults", options.faults)) if value is not None]  # fmt: skip
        again += ["--calm"] if options.calm else []
        again += [f"--only '{name}'" for name in options.only or ()]
        print(f"  replay: .venv/bin/python -m tests.faults {' '.join(again)} --keep", flush=True)


def _write(path: Path, outcomes: list[Outcome]) -> None:
    path.write_text(
        json.dumps(
            {
                "command": " ".join(["python -m tests.faults", *sys.argv[1:]]),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "rounds": [
                    {**{k: v for k, v in vars(o).items() if k != "tail"}, "recoveries": [vars(r) for r in o.recoveries]}
                    for o in outcomes
                ],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
