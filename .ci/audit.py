"""Known vulnerabilities of the locked packages, by pip-audit and the OSV database (osv.dev).

A known one fails the check and is named with its advisory and the version that mends it. Where the database cannot be
asked, one line says so and the check passes: it must work without a network, and must not look as if it had looked.
"""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120
UNREACHABLE = re.compile(r"requests\.exceptions\.|interface\.ServiceError|Could not connect to")


@dataclass(frozen=True)
class Ignored:
    """An advisory that does not concern us: why, and until when that was looked into."""

    id: str
    reason: str
    until: date


IGNORED: tuple[Ignored, ...] = ()


class UnreachableError(Exception):
    """The database of vulnerabilities could not be asked."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.lock")
    parser.add_argument("--url", help="another service that answers as OSV's /v1/query")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    try:
        packages = ask(options.requirements, options.url, options.seconds)
    except UnreachableError as error:
        print(f"audit: could not look: {error}")
        return 0
    return tell(packages, IGNORED, date.today())


def ask(requirements: Path, url: str | None, seconds: float) -> list[dict[str, Any]]:
    """What pip-audit says of each locked package."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        str(requirements),
        "--require-hashes",
        "--disable-pip",
    ]
    command += ["--vulnerability-service=osv", "--format=json", "--progress-spinner=off", "--timeout=10"]
    command += [f"--osv-url={url}"] if url else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"no answer within {seconds:g} s") from None
    if done.stdout.strip():
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        return packages
    last = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
    if UNREACHABLE.search(done.stderr):
        raise UnreachableError(last[:300])
    sys.exit(f"audit: {last}")


def tell(packages: list[dict[str, Any]], ignored: tuple[Ignored, ...], today: date) -> int:
    """Print what was found; 1 where something must be done."""
    found = [line for package in packages for line in faults(package, ignored, today)]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    for line in found:
        print(f"audit: {line}")
    if skipped:
        print(f"audit: could not look at {len(skipped)} of {len(packages)} packages: {', '.join(skipped)[:300]}")
    looked = len(packages) - len(skipped)
    if looked and not found:
        print(f"audit: nothing is known against {looked} locked packages")
    return 1 if found else 0


def faults(package: dict[str, Any], ignored: tuple[Ignored, ...], today: date) -> list[str]:
    """A line for each advisory on a package that is not ignored."""
    lines = []
    for advisory in package.get("vulns", ()):
        ids = {advisory["id"], *advisory["aliases"]}
        known = [one for one in ignored if one.id in ids]
        if any(today <= one.until for one in known):
            continue
        over = f"; ignored until {known[0].until}, which is over" if known else ""
        mend = f"fixed in {', '.join(advisory['fix_versions'])}" if advisory["fix_versions"] else "no fixed version yet"
        summary = advisory["description"].splitlines()[0][:200] if advisory["description"] else ""
        lines.append(f"{package['name']} {package['version']}: {', '.join(sorted(ids))} ({mend}){over}: {summary}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
