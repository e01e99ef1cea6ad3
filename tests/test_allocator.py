"""Memory that a program frees stays with it, unless somebody else tunes malloc."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Takes and frees 64 MiB again and again; counts the pages that the system had to give.
PROGRAM = """
import resource, sys
from rec_jax.allocator import keep_freed_memory
import numpy as np
kept = keep_freed_memory() if sys.argv[1] == "kept" else False
def take():
    np.ones(64 << 20, np.uint8)
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    take()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True,
                          check=True, env={**clean, **environment})
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is tuned")
def test_freed_memory_is_used_again() -> None:
    kept, few = faults("kept")
    _, many = faults("not")
    assert kept == "True" and few < many / 4


def test_a_tuned_environment_is_left_alone() -> None:
    assert faults("kept", MALLOC_ARENA_MAX="4")[0] == "False"
