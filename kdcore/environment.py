"""What libraries are told before torch is loaded: import this first. No torch here.

Threads of OpenMP that wait for each other spin, 300,000 times by libgomp's own choice (its manual, GOMP_SPINCOUNT),
before they sleep. On idle cores a hundredth of that is as fast; beside a busy process, spinning takes the core from the
thread that is waited for. `python -m benchmarks.speed.waiting` shows both.

glibc takes a block above 32 MiB from the system and gives it back when it is freed, as it gives back what lies free at
the end of its heap once that is 64 MiB (mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD); the system clears every
page that it gives again. The maps of an evaluation are that large, in every batch. 128 MiB for both keep most of them,
in holes between what stays and at the heap's end, until `kdcore/memory.py` gives them back. `python -m
benchmarks.speed.pages` shows what it is worth.

Whoever sets one of the variables of either is obeyed.
"""

import ctypes
import os

from kdcore.memory import KEPT

SPINS = "3000"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As glibc's malloc.h numbers them."""
MALLOC = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPINS

mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library has none
# An older glibc refuses the first, above 32 MiB. With the second alone it would give back every block above 128 KiB.
if mallopt is not None and not MALLOC & os.environ.keys() and mallopt(M_MMAP_THRESHOLD, KEPT):
    mallopt(M_TRIM_THRESHOLD, KEPT)
