"""What "auto" takes on a CPU: the native library where it was right and not slower than XLA.

That is a measurement, made once a machine (`measured.py`). Who wants one answer for a whole run,
or for several processes, asks once for `choices` and computes inside `pinned`. `$REC_JAX_AUTO`
(native or xla) decides without measuring; so do several processes that nobody has pinned, which
must all run one program.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import jax

from . import measured
from .measured import VARIABLE, Seconds
from .native import build as native_build

FOLDS = {"softmax_loss": "softmax", "softmax_item_update": "softmax", "softmax_entropy": "softmax",
         "softmax_entropy_update": "softmax", "target_rank": "rank", "top_k": "rank",
         "attention": "attention", "feed_forward": "feed_forward"}
"""What is measured for an operation."""

_GAIN = 1.1
"""XLA is taken where it is more than this many times as fast."""

_PINS: ContextVar[Mapping[str, str] | None] = ContextVar("pins", default=None)

log = logging.getLogger("rec_jax.kernels")


def takes_native(op: str) -> bool:
    """Whether "auto" computes an operation of `FOLDS` with the native library."""
    return jax.default_backend() == "cpu" and behind(op) is None


def behind(op: str) -> str | None:
    """Why "auto" does not take the native library for `op` on a CPU, or None."""
    fold, pins = FOLDS[op], _PINS.get()
    if pins is not None and fold in pins:
        return _unusable() if pins[fold] == "native" else f"the run takes {pins[fold]}"
    return _reason(fold, measured_here=jax.process_count() == 1)


def _reason(fold: str, *, measured_here: bool) -> str | None:
    said = decided()
    if said == "xla":
        return f"${VARIABLE} is xla"
    if said == "native" or not measured_here:
        return _unusable()
    return verdict(fold, _measured()) or _unusable()


def decided() -> str | None:
    """What `$REC_JAX_AUTO` says: native, xla, or None."""
    said = os.environ.get(VARIABLE, "")
    if said not in ("", "native", "xla"):
        raise ValueError(f"${VARIABLE} is {said!r}; expected native or xla")
    return said or None


def choices(*, measured_here: bool = True) -> dict[str, str]:
    """By fold, the backend that "auto" takes on this CPU; this waits until that is known.

    measured_here: false takes the native library unmeasured, if it can be had.
    """
    return {fold: "native" if _reason(fold, measured_here=measured_here) is None else "xla"
            for fold in measured.FOLDS}


def begin() -> None:
    """Start to find out in the background what `choices` will answer, where it is not known."""
    if decided() is None:
        measured.begin()


def ready(seconds: float = 0.0) -> bool:
    """Whether `choices` would answer at once, perhaps after so many seconds."""
    return decided() is not None or measured.ready(seconds)


def unusable(choices: Mapping[str, str]) -> str | None:
    """Why this CPU cannot compute as `choices` say, or None; builds the library they need."""
    return native_build.problem() if "native" in choices.values() else None


def asked_for() -> tuple[str | None, tuple[tuple[str, str], ...] | None]:
    """What decides here beside the measurement: programs of one answer compute alike."""
    pins = _PINS.get()
    return decided(), None if pins is None else tuple(sorted(pins.items()))


@contextlib.contextmanager
def pinned(choices: Mapping[str, str] | None) -> Iterator[None]:
    """What is traced in this context computes each fold by the backend that `choices` names.

    A fold that they lack, and all where there are none, stay with "auto".
    """
    token = _PINS.set(choices)
    try:
        yield
    finally:
        _PINS.reset(token)


def verdict(fold: str, seconds: Seconds) -> str | None:
    """Why what was measured speaks against the native library, or None."""
    native, xla = (seconds.get(fold, {}).get(name, "not measured") for name in ("native", "xla"))
    if isinstance(native, str):
        return native
    if isinstance(xla, float) and native > _GAIN * xla:
        return f"slower here, {1e3 * native:.3g} ms and xla {1e3 * xla:.3g} ms"
    return None


@functools.cache
def _measured() -> Seconds:
    seconds = measured.found()
    _say(seconds)
    return seconds


def _say(seconds: Seconds) -> None:
    """One line: what is taken for each fold, and why; a warning where something is wrong."""
    reasons = {fold: verdict(fold, seconds) for fold in seconds}
    common = set(reasons.values())
    if len(common) == 1 and not any("xla" in tried for tried in seconds.values()):
        log.warning("the native backend cannot be used, and xla is taken: %s", common.pop())
        return
    lost = any(isinstance(value, str) for tried in seconds.values() for value in tried.values())
    parts = [f"{fold} by native" if reason is None else f"{fold} by xla (native: {reason})"
             for fold, reason in reasons.items()]
    log.log(logging.WARNING if lost else logging.INFO, "measured here: %s", ", ".join(parts))


@functools.cache
def _unusable() -> str | None:
    """Why there is no library although it is wanted, or None; the first to ask also logs it."""
    reason = native_build.problem()
    if reason is not None:
        log.warning("the native backend cannot be used, and xla is taken: %s", reason)
    return reason
