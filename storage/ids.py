"""Identifiers: a prefix, then 26 characters that sort by time (48 bits of milliseconds, 80 random bits)."""

import re
import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID = re.compile(r"^[a-z]+_[0-9a-hjkmnp-tv-z]{26}\Z")
JOB_ID = re.compile(r"^job_[0-9a-hjkmnp-tv-z]{26}\Z")
CHECK = "chk"
"""Prefix of the jobs that check uploads: `/jobs` knows no id like these."""


def is_check(job_id: str) -> bool:
    return job_id.startswith(f"{CHECK}_")


def new_id(prefix: str) -> str:
    """A new id such as `job_01k…`; ids made in different milliseconds sort in that order."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    digits = [ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5)]
    return f"{prefix}_{''.join(digits)}"
