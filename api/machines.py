"""What is known of the machines that jobs run on, where a spec asks for a student that is fast enough there."""

from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from kdcore.machine_speed import MachineSpeed
from kdcore.student_choice import picks_by_latency
from storage import calibrations

DEVICES = ("auto", "cpu", "cuda")


def speed_for(session: Session, document: Any, within_seconds: float) -> MachineSpeed | None:
    """The newest calibration of a worker that could take the job; None where there is none, or it is not needed.

    Args:
        document: the spec's, which is not read yet.
        within_seconds: how old the last heartbeat of a worker may be that is there.
    """
    if not picks_by_latency(document):
        return None
    device = document.get("device", "auto")
    if device not in DEVICES:
        return None  # reading it says why
    for stored in calibrations.newest(session, device, within_seconds):
        try:
            return MachineSpeed.model_validate(stored)
        except ValidationError:
            continue  # another version measured otherwise
    return None
