"""What this machine computes with: devices, versions, and each backend with its time or refusal."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from rec_jax import compilation_cache
from rec_jax.bench.record import about_machine, versions
from rec_jax.kernels import Problem, auto, dispatch, measured
from rec_jax.kernels.native import build as native_build
from rec_jax.kernels.native import cache as native_cache
from rec_jax.kernels.native import isa as native_isa

_OPS = {"softmax": "softmax_loss", "rank": "target_rank"}
_SETTINGS = (auto.VARIABLE, native_isa.VARIABLE, compilation_cache.VARIABLE, "REC_JAX_CACHE", "CXX",
             "JAX_PLATFORMS", "XLA_FLAGS")
_SLOW = 1.0


def doctor() -> dict[str, Any]:
    """Machine, versions, devices, and by fold of the kernels what "auto" takes and why.

    On a CPU this measures the backends, in a process of its own, unless that is known: some twenty
    seconds where nothing else runs. `folds` has for each fold `auto`, the name of the backend that
    is taken, and `backends`: by name `seconds`, or None where nothing is measured, and `refused`,
    or None where it can be taken.
    """
    platform = jax.default_backend()
    machine = about_machine()
    return {
        "machine": {name: value for name, value in machine.items() if name != "devices"},
        "versions": {"rec-jax": importlib.metadata.version("rec-jax"), **versions()},
        "platform": platform,
        "devices": machine["devices"],
        "folds": _folds(platform),
        "compiler": _compiler(),
        "cache": str(native_cache.folder()),
        "programs": str(compilation_cache.folder()) if compilation_cache.is_allowed() else None,
        "settings": {name: os.environ[name] for name in _SETTINGS if os.environ.get(name)},
    }


@contextmanager
def telling(say: Callable[[str], None]) -> Iterator[None]:
    """Warnings of the kernels are kept back, as the table has them; a long wait is announced."""
    log = logging.getLogger("rec_jax.kernels")
    before = log.level
    log.setLevel(logging.ERROR)
    auto.begin()
    try:
        if not auto.ready(_SLOW):
            say("the native library for this CPU is built and measured, once on this machine")
        yield
    finally:
        log.setLevel(before)


def _folds(platform: str) -> dict[str, dict[str, Any]]:
    taken = dispatch.taken()
    return {fold: {"auto": taken[fold], "backends": _backends(fold, platform)}
            for fold in measured.FOLDS}


def _backends(fold: str, platform: str) -> dict[str, dict[str, Any]]:
    """By name, for all that could be meant: an encoder's folds are native or XLA's."""
    names = [name for name in dispatch.BACKENDS if name != "reference"
             and (fold in _OPS or name in ("native", "xla"))]
    seconds = measured.found() if platform == "cpu" and auto.decided() is None else {}
    rows = {}
    for name in names:
        tried = seconds.get(fold, {}).get(name)
        refused = tried if isinstance(tried, str) else _refusal(fold, name, platform)
        if refused is None and name == "native":
            refused = auto.behind(_OPS.get(fold, fold)) if platform == "cpu" else None
        rows[name] = {"seconds": tried if isinstance(tried, float) else None, "refused": refused}
    return rows


def _refusal(fold: str, name: str, platform: str) -> str | None:
    if fold in _OPS:
        problem = Problem(_OPS[fold], platform, 1024, 8192, 64, "float32", "float32")
        return dispatch.refusal(dispatch.load(name), problem)
    if name == "native" and platform != "cpu":
        return f"it runs on cpu, not {platform}"
    return None


def _compiler() -> str:
    try:
        return shlex.join(native_build.compiler())
    except OSError as error:
        return str(error)
