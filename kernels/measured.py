"""What was found about the CPU backends on this machine: once, in a process of its own, and kept.

`measure.py` is that process. It builds the library and tries both backends, so that a library
that crashes or hangs there costs a line and not the run, and it works while this process imports
and traces. What it finds is kept beside the library, and asked again only for other sources,
versions or CPUs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path

import jax

from .native import build as native_build
from .native import cache as native_cache

FOLDS = ("softmax", "rank", "attention", "feed_forward")
"""What is measured."""

VARIABLE = "REC_JAX_AUTO"
PATIENCE = 150.0
"""Seconds that a program waits for the library and its measurement, which take about twenty on a
machine that does nothing else; then xla is taken, and the next program finds what was made."""
_SECONDS = 120.0
"""What the measurement may take beside the building."""

_LATE = "its check did not end within"
_AGAIN_SECONDS = 86_400.0
"""A check that did not end in time is made again after this: perhaps the machine was busy."""

LIBRARY = "library"
"""The key under which the measuring process tells why there is no library."""

Seconds = dict[str, dict[str, float | str]]
"""By fold and backend, or what was wrong."""

log = logging.getLogger("rec_jax.kernels")


def begin() -> None:
    """Start to find out in the background, unless that was done; `found` waits for it."""
    _started()


def ready(seconds: float = 0.0) -> bool:
    """Whether `found` would answer at once, perhaps after so many seconds."""
    return bool(wait([_started()], seconds).done)


@functools.cache
def found() -> Seconds:
    """What is known of this machine; one answer a process, whatever becomes known later."""
    if not ready(PATIENCE):
        return without(f"it was not ready within {PATIENCE:.0f} seconds")
    try:
        return _started().result()
    except OSError as error:
        return without(str(error))


def without(reason: str) -> Seconds:
    """What is known where there is no library."""
    return {fold: {"native": reason} for fold in FOLDS}


@functools.cache
def _started() -> Future[Seconds]:
    answer: Future[Seconds] = Future()

    def find() -> None:
        try:
            answer.set_result(_find())
        except BaseException as error:  # whoever asks gets it
            answer.set_exception(error)

    threading.Thread(target=find, name="measured", daemon=True).start()
    return answer


def _find() -> Seconds:
    """What was kept, or what is found now.

    Raises:
      OSError: there is no library; the message is one line.
    """
    _, library = native_build.planned()
    name = f"auto-{_key(library)}.json"
    for folder in (library.parent, native_cache.temporary()):
        if (kept := read(folder / name)) is not None:
            return kept
    folder = native_cache.writable(library.parent)
    with native_cache.locked(folder, 2 * _SECONDS, native_cache.MEASURING):
        if (kept := read(folder / name)) is not None:
            return kept
        seconds = measure()
        with contextlib.suppress(OSError):  # what cannot be kept is found again by the next one
            native_cache.write(folder / name, json.dumps(seconds))
    return seconds


def measure() -> Seconds:
    """Both backends by fold, in a process of its own; an end before its time is native's fault.

    Raises:
      OSError: that process could not be started, or there is no library.
    """
    if not sys.executable:
        raise OSError("this Python cannot start another one")
    log.info("measuring the backends on this machine, once")
    environment = {**os.environ, VARIABLE: "native", "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    environment.pop("XLA_FLAGS", None)
    seconds: Seconds = {}
    limit = native_build.LONGEST + _SECONDS
    try:
        done = subprocess.run([sys.executable, "-m", f"{__package__}.measure"], env=environment,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=limit, check=False)
        out, end = done.stdout, f"its check ended with code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        out, end = error.stdout or b"", f"{_LATE} {limit:.0f} seconds"
    for line in out.decode(errors="replace").splitlines():
        if line.startswith('{"'):
            seconds |= json.loads(line)
    if isinstance(reason := seconds.get(LIBRARY), str):
        raise OSError(reason)
    return {fold: seconds.get(fold, {"native": end}) for fold in FOLDS}


def read(path: Path) -> Seconds | None:
    """What was kept, or None where it is not ours, not whole, or to be asked again."""
    try:
        if native_cache.distrust(path):
            return None
        kept = json.loads(path.read_text())
        whole = isinstance(kept, dict) and all(isinstance(kept.get(fold), dict) for fold in FOLDS)
        late = whole and any(str(seconds.get("native")).startswith(_LATE)
                             for seconds in kept.values())
        if late and time.time() - path.stat().st_mtime > _AGAIN_SECONDS:
            return None
    except (OSError, ValueError):
        return None
    return kept if whole else None


def _key(library: Path) -> str:
    """A hash of the library, of what Python does around it, of XLA and of the cores."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    parts = [library.name, jax.__version__, str(os.cpu_count()),
             *(source.read_text() for source in sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
