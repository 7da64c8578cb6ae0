"""`python -m worker.health`: exit status 0 while this host's worker says that it is alive."""

import socket
import sys

from storage import workers
from storage.database import Database
from storage.settings import Settings


def is_alive(database: Database, settings: Settings, hostname: str) -> bool:
    """Whether a worker on `hostname` has renewed its row within the time of a lease."""
    with database.read() as session:
        return any(worker.hostname == hostname for worker in workers.present(session, settings.lease_seconds))


def main() -> int:
    settings = Settings()
    database = Database(settings.database)
    try:
        return 0 if is_alive(database, settings, socket.gethostname()) else 1
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(main())
