"""Host memory that a step frees stays with the process, for the next step.

XLA:CPU takes the temporary arrays of a program from malloc at every call. glibc hands blocks of
that size back to the system when they are freed, so each step pays for every page again: a sixth
of a training step on MovieLens-1M (`docs/architecture.md`).
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB that is free; for programs that own their process.

    False where there is no glibc, or the environment tunes malloc already.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    if sys.platform != "linux":
        return False
    return bool(mallopt(_MMAP_THRESHOLD, KEPT)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
