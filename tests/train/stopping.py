"""A reporter that ends a training as a lost machine would."""

from __future__ import annotations

from rec_jax.progress import Silent


class Stopped(Exception):
    """Thrown out of the loop."""


class StopAfter(Silent):
    """Lets so many steps pass."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= count
        if count and self.left <= 0:
            raise Stopped
