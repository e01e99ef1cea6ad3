"""Sampled softmax against negatives that come with the batch.

Where rows come and go, only who keeps the account of them knows which are live, so it draws, and
says how often each row was expected (`rec_jax.tier.live_draws`). The estimate is that of
`rec_jax.objectives.negatives`. No config names this objective: a dataset has no such batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from rec_jax.objectives import sampled_softmax
from rec_jax.objectives.base import Batch, Keys, Task
from rec_jax.objectives.sampled import Negatives, NextItemAgainstDrawn, against

GIVEN, EXPECTED = "negatives", "log_expected"
"""Names of a batch: int32 and f32 `[1, B, k]`, the rows drawn, and log of the expected number of
each among all B k; inf: an empty place."""


@dataclass(frozen=True)
class Config(sampled_softmax.Config):
    """Settings of `sampled_softmax`; `negatives` says nothing here, and `count` how many come."""

    kind: str = "given_negatives"

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Next items, against what the batch brings for all positions of its one micro-batch."""
        task = NextItemAgainstDrawn.plan(self, batch, keys, num_items)
        return against(task, Negatives(batch[GIVEN].reshape(-1), batch[EXPECTED].reshape(-1)))
