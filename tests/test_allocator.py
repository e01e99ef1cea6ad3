"""Memory that a program frees stays with it, unless somebody else tunes malloc."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from rec_jax.allocator import restart_with_tuned_malloc

# Takes and frees 64 MiB again and again in a second thread, as XLA does; counts the pages that
# the system had to give, and says what the program was asked to do.
PROGRAM = """
import ctypes, os, resource, sys, threading
from rec_jax.allocator import restart_with_tuned_malloc
if sys.argv[1] == "kept":
    restart_with_tuned_malloc()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def take():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
def work():
    take()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        take()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print("GLIBC_TUNABLES" in os.environ, faults, *sys.argv[1:])
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def answer(script: Path, how: str, **environment: str) -> list[str]:
    script.write_text(PROGRAM)
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, str(script), how, "--a b"], capture_output=True,
                          text=True, check=True, env={**clean, **environment})
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is tuned")
def test_a_restarted_program_asks_for_few_pages(tmp_path: Path) -> None:
    tuned, few, *arguments = answer(tmp_path / "program.py", "kept")
    assert tuned == "True" and arguments == ["kept", "--a", "b"]
    untuned, many, *_ = answer(tmp_path / "program.py", "not")
    assert untuned == "False"
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge.exists() and "[never]" not in huge.read_text():
        assert int(few) < int(many) / 4


def test_a_tuned_environment_is_left_alone(tmp_path: Path) -> None:
    assert answer(tmp_path / "program.py", "kept", MALLOC_ARENA_MAX="4")[0] == "False"


def test_a_program_that_cannot_start_once_more_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
            monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    restart_with_tuned_malloc()
    assert "GLIBC_TUNABLES" not in os.environ
