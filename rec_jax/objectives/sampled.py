"""What objectives against drawn rows have in common: they predict the next item."""

from __future__ import annotations

from typing import NamedTuple

import jax

from rec_jax.objectives.base import Batch, Ids, Keys, Needs, Task, next_items

Array = jax.Array

NEGATIVES = "negatives"
"""The name of their rows."""


class Negatives(NamedTuple):
    """Items that all positions of a step are scored against.

    ids: int32 `[K]`; log_expected: f32 `[K]`, log of the expected number of this item among the
    draws; inf: the slot is empty.
    """

    ids: Array
    log_expected: Array


class NextItemAgainstDrawn:
    """Base of a sampled objective's `Config`: the answers that most of them give."""

    @property
    def causal(self) -> bool:
        """A position sees only its past."""
        return True

    @property
    def needs(self) -> Needs:
        """The rows of the labels."""
        return Needs(labels=True)

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Every position that has a next item predicts it."""
        del keys, num_items
        return next_items(batch["targets"])


def against(task: Task, negatives: Negatives) -> Task:
    """The task with negatives that all of its positions share."""
    return task._replace(
        shared={NEGATIVES: Ids(negatives.ids, negatives.log_expected < float("inf"))},
        constants=negatives)
