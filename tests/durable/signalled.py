"""A reporter that sends a signal to this process when so many steps are done."""

from __future__ import annotations

import signal

from rec_jax.progress import Silent


class SignalAfter(Silent):
    def __init__(self, steps: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.left, self.number = steps, number

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= count
        if count and self.left == 0:
            signal.raise_signal(self.number)
