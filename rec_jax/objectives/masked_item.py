"""Hidden items from both sides: the objective of BERT4Rec (Sun et al., 2019).

A share of a history's items is hidden behind one learned vector, the encoder sees all others,
before and after, and predicts the hidden ones. To ask what comes next, a hidden place is put
behind the newest item (`rec_jax.inference.histories`); some histories are trained that way too,
with nothing hidden but their newest item. The loss is the exact softmax over the whole catalogue
(`rec_jax.objectives.full_softmax`), of hidden places only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rec_jax.objectives.base import Batch, Keys, Task
from rec_jax.objectives.full_softmax import FullSoftmax
from rec_jax.ranges import at_least, between, check


@dataclass(frozen=True)
class Config(FullSoftmax):
    """Settings of the objective: those of `FullSoftmax`, and

    share: how many of the places are hidden, each by its own coin.
    last: share of the histories of which only the newest item is hidden instead.
    """

    kind: str = "masked_item"
    share: float = 0.2
    last: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "", share=between(0, 1), last=at_least(0, 1))

    @property
    def causal(self) -> bool:
        """A position sees what comes after it, too."""
        return False

    def capacity(self, positions: int) -> int:
        """Hidden places that `positions` places can have, N: six standard deviations above the
        mean, so that chance alone never reaches it."""
        mean = positions * self.share
        return min(positions, math.ceil(mean + 6 * math.sqrt(mean * (1 - self.share))))

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Hide items of each micro-batch and predict them."""
        del num_items
        return jax.vmap(self._hide)(batch["targets"], batch["segments"], keys.each)

    def _hide(self, targets: jax.Array, segments: jax.Array, key: jax.Array) -> Task:
        """Hide items of `[B, L]` and predict them; targets are the items themselves (-1: none).

        Histories shorter than 1 / share of which only the newest item is hidden may ask for more
        than `capacity(B * L)` places: then those in the last rows stay visible.
        """
        rows, length = targets.shape
        each, whole = jax.random.split(key)
        filled = targets >= 0
        after = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
        newest = segments != after
        coins = jax.random.uniform(whole, (rows, length + 1))  # of the segments of a row
        only = jnp.take_along_axis(coins, segments, axis=1) < self.last
        drawn = jnp.where(only, newest, jax.random.uniform(each, (rows, length)) < self.share)
        drawn = (drawn & filled).reshape(-1)
        count = self.capacity(rows * length)
        hidden = drawn & (jnp.cumsum(drawn) <= count)
        where = jnp.nonzero(hidden, size=count, fill_value=0)[0].astype(jnp.int32)
        weights = (jnp.arange(count) < jnp.sum(hidden)).astype(jnp.float32)
        return Task(where, jnp.maximum(targets.reshape(-1)[where], 0), weights,
                    hidden.reshape(rows, length))
