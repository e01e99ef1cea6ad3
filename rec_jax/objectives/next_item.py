"""Next item with the exact softmax over the whole catalogue (`rec_jax.objectives.full_softmax`)."""

from __future__ import annotations

from dataclasses import dataclass

from rec_jax.objectives.base import Batch, Keys, Task, next_items
from rec_jax.objectives.full_softmax import FullSoftmax


@dataclass(frozen=True)
class Config(FullSoftmax):
    """Settings of the objective: those of `FullSoftmax`."""

    kind: str = "next_item"

    @property
    def causal(self) -> bool:
        """A position sees only its past."""
        return True

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Every position that has a next item predicts it."""
        del keys, num_items
        return next_items(batch["targets"])
