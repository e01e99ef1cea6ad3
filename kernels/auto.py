"""What "auto" takes on a CPU: the native library where it was right and not slower than XLA.

At the first use on a machine `measure.py` tries both in a process of its own, so that a library
that crashes or hangs there costs a line in the log and not the run. What it finds is kept beside
the library and asked again only for other sources, versions or CPUs. `$REC_JAX_AUTO` (native or
xla) decides without measuring; so does more than one process, which must all run one program.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import jax

from . import native_build, native_cache

FOLDS = {"softmax_loss": "softmax", "softmax_item_update": "softmax", "target_rank": "rank",
         "attention": "attention", "feed_forward": "feed_forward"}
"""What is measured for an operation."""

VARIABLE = "REC_JAX_AUTO"
_GAIN = 1.1
"""XLA is taken where it is more than this many times as fast."""
_SECONDS = 120.0
"""What the measurement may take; it takes a few on a machine that does nothing else."""

_LATE = "its check did not end within"
_AGAIN_SECONDS = 86_400.0
"""A check that did not end in time is made again after this: perhaps the machine was busy."""

Seconds = dict[str, dict[str, float | str]]
"""By fold and backend, or what was wrong."""

log = logging.getLogger("rec_jax.kernels")


def takes_native(op: str) -> bool:
    """Whether "auto" computes an operation of `FOLDS` with the native library."""
    return native_build.usable() and behind(op) is None


def behind(op: str) -> str | None:
    """Why "auto" does not take the native library for `op`, or None. The library is there."""
    pinned = os.environ.get(VARIABLE, "")
    if pinned not in ("", "native", "xla"):
        raise ValueError(f"${VARIABLE} is {pinned!r}; expected native or xla")
    if pinned == "xla":
        return f"${VARIABLE} is xla"
    if pinned == "native" or jax.process_count() > 1:
        return None
    return verdict(FOLDS[op], _measured())


def verdict(fold: str, measured: Seconds) -> str | None:
    """Why `measured` speaks against the native library, or None."""
    native, xla = (measured.get(fold, {}).get(name, "not measured") for name in ("native", "xla"))
    if isinstance(native, str):
        return native
    if isinstance(xla, float) and native > _GAIN * xla:
        return f"slower here, {1e3 * native:.3g} ms and xla {1e3 * xla:.3g} ms"
    return None


@functools.cache
def _measured() -> Seconds:
    """What was found on this machine, perhaps now."""
    library = native_build.build()
    name = f"auto-{_key(library)}.json"
    for folder in (library.parent, native_cache.temporary()):
        if (found := _read(folder / name)) is not None:
            return found
    try:
        folder = native_cache.writable(library.parent)
        with native_cache.locked(folder, 2 * _SECONDS):
            if (found := _read(folder / name)) is not None:
                return found
            found = measure()
            native_cache.write(folder / name, json.dumps(found))
    except OSError as error:
        log.warning("the backends are not measured, and native is taken: %s", error)
        return {fold: {"native": 0.0} for fold in FOLDS.values()}
    _say(found)
    return found


def measure() -> Seconds:
    """Both backends by fold, in a process of its own; an end before its time is native's fault."""
    log.info("measuring the backends on this machine, once")
    environment = {**os.environ, VARIABLE: "native", "JAX_PLATFORMS": "cpu",
                   "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    environment.pop("XLA_FLAGS", None)
    found: Seconds = {}
    try:
        done = subprocess.run([sys.executable, "-m", f"{__package__}.measure"], env=environment,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=_SECONDS, check=False)
        out, end = done.stdout, f"its check ended with code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        out, end = error.stdout or b"", f"{_LATE} {_SECONDS:.0f} seconds"
    for line in out.decode(errors="replace").splitlines():
        if line.startswith('{"'):
            found |= json.loads(line)
    return {fold: found.get(fold, {"native": end}) for fold in dict.fromkeys(FOLDS.values())}


def _say(found: Seconds) -> None:
    """One line: what is taken for each fold, and why."""
    lost = False
    parts = []
    for fold, seconds in found.items():
        reason = verdict(fold, found)
        lost |= any(isinstance(value, str) for value in seconds.values())
        parts.append(f"{fold} by native" if reason is None else f"{fold} by xla (native: {reason})")
    log.log(logging.WARNING if lost else logging.INFO, "measured here: %s", ", ".join(parts))


def _read(path: Path) -> Seconds | None:
    """What was kept, or None where it is not ours, not whole, or to be asked again."""
    try:
        if native_cache.distrust(path):
            return None
        found = json.loads(path.read_text())
        whole = isinstance(found, dict) and all(
            isinstance(found.get(fold), dict) for fold in FOLDS.values())
        late = whole and any(str(seconds.get("native")).startswith(_LATE)
                             for seconds in found.values())
        if late and time.time() - path.stat().st_mtime > _AGAIN_SECONDS:
            return None
    except (OSError, ValueError):
        return None
    return found if whole else None


def _key(library: Path) -> str:
    """A hash of the library, of what Python does around it, of XLA and of the cores."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    parts = [library.name, jax.__version__, str(os.cpu_count()),
             *(source.read_text() for source in sources)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
