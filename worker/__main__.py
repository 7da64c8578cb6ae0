"""`python -m worker`: a worker with the settings of the environment."""

import sys

from storage.settings import Settings
from worker.main import run

if __name__ == "__main__":  # the pool's spawned child imports this module as well
    sys.exit(run(Settings()))
