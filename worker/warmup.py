"""What a spare does while it has no job: pays for what torch and others load only when they are used."""

from pathlib import Path

from kdcore.job import choose_here
from kdcore.spec import parse_spec

SMALL = {
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "cnn", "channels": [1]}}],
    "student": {"model": {"type": "mlp", "hidden": [1]}},
}


def warm_up() -> None:
    """Plan a small job and load its data; on the CPU, whatever the job will need: CUDA stays untouched."""
    spec = parse_spec(SMALL)
    choose_here(spec, "cpu")
    spec.data.load(Path(), download=False)
