"""Host memory that a step frees stays with the process, for the next step, in huge pages.

XLA:CPU takes the temporary arrays of a program from malloc at every call. glibc hands blocks of
that size back to the system when they are freed, and takes them again page by page: a sixth to a
fifth of a training step on MovieLens-1M (`docs/architecture.md`). glibc reads what changes that
when a program starts, so the program has to start once more.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys

KEPT = 1 << 30
"""Bytes of free memory that stay, and the size from which on a block goes back at once."""

_TUNABLES = (f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={KEPT}:"
             f"glibc.malloc.trim_threshold={KEPT}")


def restart_with_tuned_malloc() -> None:
    """Replace this process by the same command with a tuned malloc; for programs alone.

    Call it first: whatever the process has done is forgotten. Does nothing in the process that
    it started, without glibc, or where the environment tunes malloc already; where the program
    cannot be started once more, it goes on as it is.
    """
    tuned = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if tuned or not sys.executable or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = _TUNABLES
    with contextlib.suppress(OSError):  # such as a user who may not read the folder of Python
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    del os.environ["GLIBC_TUNABLES"]
