"""Test processes that are forked from one that has imported JAX, and what they used.

Importing is seconds of each test process, so it is done once; XLA's client must not exist before
the fork, and neither may the package under test, which each child imports from its own tree.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib
import importlib.util
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

# Not hypothesis, which pytest wants to import itself.
PRELOAD = ("jax", "flax.nnx", "optax", "scipy.sparse", "orbax.checkpoint", "pytest")
POLL = 0.2
# A process that neither ends nor computes waits for something that will not come.
STILL = 180
PARENT_DIED = 1  # PR_SET_PDEATHSIG


def preload(conftest: Path, names: Sequence[str] = PRELOAD) -> None:
    """Imports what all tests need, under the environment that the tests ask for."""
    for node in ast.parse(conftest.read_text()).body if conftest.exists() else []:
        if isinstance(node, ast.Expr) and ast.unparse(node).startswith("os.environ.setdefault("):
            exec(ast.unparse(node), {"os": os})
    for name in names:
        importlib.import_module(name)


@dataclass(frozen=True)
class Limits:
    """Seconds of CPU time, and of time on the clock as far as this process saw it pass: it does
    not count how long both were stopped."""

    cpu: float
    wall: float


@dataclass
class Child:
    """A forked pytest; ended: its code, or "timeout"."""

    pid: int
    output: Path
    limits: Limits
    started: float = field(default_factory=time.monotonic)
    cpu: float = 0.0
    ticks: float = 0.0
    moved: float = 0.0
    ended: int | str | None = None

    def poll(self, tick: float) -> bool:
        """Whether it has ended; a child that is over its limits is ended here."""
        self._count(tick)
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self.cpu = max(self.cpu, usage.ru_utime + usage.ru_stime)
            self.ended = os.waitstatus_to_exitcode(status)
            self._end()
        elif (self.cpu > self.limits.cpu or self.ticks > self.limits.wall
              or self.ticks - self.moved > STILL):
            self.kill()
        return self.ended is not None

    def kill(self) -> None:
        self._end()
        os.waitpid(self.pid, 0)
        self.ended = "timeout"

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def said(self) -> tuple[str, str]:
        """The test that failed and the first line of its error, as far as they were printed."""
        text = self.output.read_text(errors="replace")
        test = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.M)
        why = re.search(r"^E\s+(.*)", text, re.M)
        return test[1] if test else "", why[1][:200] if why else ""

    def _count(self, tick: float) -> None:
        family = _family(self.pid)
        with contextlib.suppress(psutil.Error):
            if family and family[0].status() == psutil.STATUS_STOPPED:
                return  # somebody stopped it, and will let it go on
        self.ticks += tick
        used = 0.0
        for process in family:
            with contextlib.suppress(psutil.Error):
                of = process.cpu_times()
                used += of.user + of.system + of.children_user + of.children_system
        if used > self.cpu + 0.05:
            self.cpu, self.moved = used, self.ticks

    def _end(self) -> None:
        """Ends the child and all that it started."""
        for process in reversed(_family(self.pid)):
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def start(tree: Path, tests: Sequence[str], work: Path, limits: Limits,
          environment: Mapping[str, str], settings: Mapping[str, Any]) -> Child:
    """pytest over these files of a tree, until the first failure.

    work: an empty folder of its own; settings: of JAX, which has read the environment before.
    """
    output = work / "output.txt"
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks of a client; there is none
        pid = os.fork()
    if pid:
        return Child(pid, output, limits)
    code = 99
    try:
        ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGKILL)
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(to, 1)
        os.dup2(to, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = _pytest(tree, tests, work, environment, settings)
    except BaseException as error:
        print(f"E   {type(error).__name__}: {error}", flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _pytest(tree: Path, tests: Sequence[str], work: Path, environment: Mapping[str, str],
            settings: Mapping[str, Any]) -> int:
    os.chdir(tree)
    os.environ.update(environment, PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    tempfile.tempdir = None  # the parent has asked already
    # The folder of this program has modules of common names.
    here = str(Path(__file__).resolve().parents[1])
    sys.path[:] = [str(tree), *(path for path in sys.path if path not in (here, ""))]
    found = importlib.util.find_spec("rec_jax")
    if found is None or found.origin is None or not Path(found.origin).is_relative_to(tree):
        raise RuntimeError("the package is not the tree's own")
    if settings:
        import jax
        for name, value in settings.items():
            jax.config.update(name, value)
    import pytest
    return int(pytest.main([*tests, "-x", "-rfE", "--tb=short", "-p", "no:cacheprovider",
                            "-m", "not slow", f"--basetemp={work / 'pytest'}"]))
