"""`distillery calibrate`: measure this machine, on which a worker runs, and keep it for the API to plan with."""

import socket

from kdcore.machine_speed import MachineSpeed, measure_machine
from storage import calibrations, schema
from storage.database import Database
from storage.files import make_home
from storage.settings import Settings
from worker.device import cpu_name, detect


def calibrate(settings: Settings) -> MachineSpeed:
    """Measure and store; takes some seconds, of one core.

    Raises:
        NoDeviceError: the device that the settings name is not here.
        SchemaError: the database is not of this version.
    """
    make_home(settings.home)
    database = Database(settings.database)
    try:
        schema.ensure(database)
        device = detect(settings.device).type
        speed = measure_machine(cpu_name())
        with database.write() as session:
            schema.check(session)
            calibrations.store(session, socket.gethostname(), device, speed.model_dump(mode="json"))
    finally:
        database.close()
    return speed
