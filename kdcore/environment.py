"""What libraries read from the environment when they are loaded: import this before torch. No torch here.

Threads of OpenMP that wait for each other spin, 300,000 times by libgomp's own choice (its manual, GOMP_SPINCOUNT),
before they sleep. On idle cores a hundredth of that is as fast; beside a busy process, spinning takes the core from the
thread that is waited for. `python -m benchmarks.speed.waiting` shows both. Whoever sets one of the variables is obeyed.
"""

import os

SPINS = "3000"

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPINS
