"""Stopping when asked to: SIGTERM or SIGINT ends the step, saves, and exits with code 75.

Schedulers send SIGTERM before they take a machine away, people press Ctrl-C. The first signal
sets a flag that the loop reads between steps; a second one ends the process at once, and the
last complete checkpoint stands.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """Hears the signals while it is entered; elsewhere than in the main thread it never asks.

    sync_every: with several processes, steps between agreements; all of them must stop after
      the same step, whichever of them heard a signal.
    """

    def __init__(self, sync_every: int = 1) -> None:
        self._signal: int | None = None
        self._sync_every = sync_every
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self, step: int) -> str | None:
        """Name of the signal that asks to stop after `step`, or None; call it after every step."""
        mine = self._signal or 0
        if jax.process_count() > 1:
            if step % self._sync_every:
                return None
            mine = int(np.max(multihost_utils.process_allgather(np.int32(mine))))
        return signal.Signals(mine).name if mine else None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os.write(2, b"\nstopped at once; the last complete checkpoint stands\n")
            os._exit(128 + number)
        self._signal = number
        print(f"\n{signal.Signals(number).name}: finishing the step and saving; send it again to "
              f"stop at once", file=sys.stderr, flush=True)
