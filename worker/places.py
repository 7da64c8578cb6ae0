"""Where an attempt's files lie, below the service's home."""

from pathlib import Path

from storage.lifecycle import Fence
from storage.settings import Settings


def attempt_folder(settings: Settings, fence: Fence) -> Path:
    """Holds `checkpoints/`, `out/` and `log.txt`; no other attempt writes here."""
    return settings.jobs / fence.job_id / f"attempt-{fence.attempt}"
