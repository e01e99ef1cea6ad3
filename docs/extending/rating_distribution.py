"""An objective with several labels: the KL divergence to a distribution of ratings.

A user's history is one query, its last place, and the distribution that it should give is that of
the user's ratings over the items they rated, p_j = r_j / sum of r. The loss is

    KL(p || softmax(scores)) = lse - sum_j p_j s_j + sum_j p_j log p_j,

with one log-normaliser however many items were rated (softmax(U^T V), fitted to ratings).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rec_jax.objectives.base import Batch, Catalogue, Keys, Labels, Needs, Task
from rec_jax.objectives.full_softmax import FullSoftmax

Array = jax.Array


@dataclass(frozen=True)
class Config(FullSoftmax):
    """Settings of the objective: those of `FullSoftmax`."""

    kind: str = "rating_distribution"

    @property
    def causal(self) -> bool:
        """A position sees only its past."""
        return True

    @property
    def needs(self) -> Needs:
        """The log-normaliser, and the rating of each target."""
        return super().needs._replace(values=("rating",))

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """The last place of a history predicts all of its targets, weighted by their ratings."""
        del keys, num_items
        return jax.vmap(_labels)(batch["targets"], batch["segments"], batch["values/rating"])

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]`: the divergence."""
        return super().loss(queries, task, catalogue) + task.values["negative_entropy"]


def _labels(targets: Array, segments: Array, ratings: Array) -> Task:
    """From `[B, L]` each."""
    rows, length = targets.shape
    rated = jnp.where(targets >= 0, ratings, 0.0)
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    total = jnp.sum(jnp.where(same, rated[:, None, :], 0.0), axis=-1)
    share = jnp.where(rated > 0, rated / jnp.where(total > 0, total, 1.0), 0.0)  # p_j
    terms = share * jnp.log(jnp.where(share > 0, share, 1.0))
    negative_entropy = jnp.sum(jnp.where(same, terms[:, None, :], 0.0), axis=-1)
    # Segments stand side by side: the last place of each is where the next one begins.
    last = jnp.max(jnp.where(same, jnp.arange(length), 0), axis=-1)
    position = jnp.arange(rows)[:, None] * length + last
    present = (jnp.arange(length) == last) & (segments > 0) & (total > 0)
    flat = jnp.maximum(targets, 0).reshape(-1)
    return Task(None, flat, present.reshape(-1).astype(jnp.float32),
                labels=Labels(position.reshape(-1), flat, share.reshape(-1)),
                values={"negative_entropy": negative_entropy.reshape(-1)})
