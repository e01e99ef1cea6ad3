"""What objectives against drawn rows have in common: they predict the next item."""

from __future__ import annotations

import jax

from rec_jax.objectives.base import Task, next_items


class NextItemAgainstDrawn:
    """Base of a sampled objective's `Config`: the answers that most of them give."""

    @property
    def causal(self) -> bool:
        """A position sees only its past."""
        return True

    @property
    def needs_log_q(self) -> bool:
        """The draws know their probabilities."""
        return False

    @property
    def mined(self) -> int:
        """Nothing is searched."""
        return 0

    def task(self, items: jax.Array, targets: jax.Array, segments: jax.Array,
             key: jax.Array) -> Task:
        """Every position that has a next item predicts it."""
        del items, segments, key
        return next_items(targets)
