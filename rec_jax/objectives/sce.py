"""Scalable cross-entropy: the softmax within buckets of near positions and items.

Random directions are the centres of buckets. A bucket takes the positions and the items with
the largest products with its centre; the scores that matter in a softmax, the large ones, are
mostly among pairs that share a bucket. A position's loss in a bucket is

    log(exp(s_iy) + sum over items j != y of the bucket of exp(s_ij)) - s_iy,

a lower bound of the exact one; of its buckets a position keeps the largest. Positions without a
bucket are left out of the step's mean. Mezentsev et al., RecSys 2024; directions are random
mixtures of the step's own queries (their "mix"), or plain random vectors.

Items are chosen once a step, by a pass over the table and one more forward pass of the encoder;
positions within each micro-batch. One bucket is in memory at a time. On a mesh every device
computes all buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rec_jax.objectives.base import Catalogue, Needs, Search, Task
from rec_jax.objectives.sampled import NEGATIVES, Negatives, NextItemAgainstDrawn, against
from rec_jax.ranges import above, at_least, check

Array = jax.Array

_HIDDEN = -1e30  # exp gives 0, and unlike -inf a difference of two is a number
_NOWHERE = -1.0  # below every loss


@dataclass(frozen=True)
class Config(NextItemAgainstDrawn):
    """Settings of the objective.

    buckets: number of buckets.
    bucket_positions: positions of a micro-batch that a bucket takes; at most all.
    bucket_items: items that a bucket takes; at most all.
    mix: whether centres are random mixtures of the queries, else random vectors.
    scale: factor on every score.
    """

    kind: str = "sce"
    buckets: int = 64
    bucket_positions: int = 128
    bucket_items: int = 256
    mix: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        check(self, "objective.", buckets=at_least(1), bucket_positions=at_least(1),
              bucket_items=at_least(1), scale=above(0, 1e6))

    @property
    def needs(self) -> Needs:
        """The rows of the labels; every centre looks for its items."""
        return Needs(labels=True, search=self.buckets)

    def drawn(self, positions: int) -> int:
        """Rows a step: the items of all buckets."""
        del positions
        return self.buckets * self.bucket_items

    def pairs(self, positions: int, num_items: int) -> int:
        """Pairs within buckets."""
        del num_items
        return self.buckets * min(self.bucket_positions, positions) * self.bucket_items

    def mine(self, task: Task, key: Array, search: Search) -> Task:
        """The task with the items of every bucket, `[buckets * items]`, and the centres."""
        queries = search.queries()
        queries = queries.reshape(-1, queries.shape[-1]).astype(jnp.float32)
        if self.mix:
            assert task.present is not None
            shares = jax.random.normal(key, (self.buckets, queries.shape[0]))
            centres = (shares * task.present.reshape(-1)) @ queries
        else:
            centres = jax.random.normal(key, (self.buckets, queries.shape[1]))
        _, ids = search.top_k(centres, min(self.bucket_items, search.num_items), None)
        ids = ids.reshape(-1)
        # Scores that are no numbers have no best items: such a slot stays empty.
        found = Negatives(jnp.maximum(ids, 0), jnp.where(ids < 0, jnp.inf, 0.0))
        return against(task, found)._replace(constants=(found, centres))

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]` from queries `[N, d]`."""
        (negatives, centres), live = task.constants, task.present
        negative_rows = catalogue.rows(NEGATIVES)
        assert live is not None
        own = self.scale * jnp.sum(queries.astype(jnp.float32)
                                   * catalogue.rows("labels").astype(jnp.float32), axis=-1)
        near = centres @ jax.lax.stop_gradient(queries).astype(jnp.float32).T
        _, where = jax.lax.top_k(jnp.where(live, near, -jnp.inf),
                                 min(self.bucket_positions, queries.shape[0]))

        @jax.checkpoint
        def one(bucket: tuple[Array, Array, Array, Array]) -> Array:
            where, rows, ids, log_expected = bucket
            scores = self.scale * jnp.dot(queries[where], rows.astype(queries.dtype).T,
                                          preferred_element_type=jnp.float32) - log_expected
            scores = jnp.maximum(scores, _HIDDEN)
            scores = jnp.where(task.targets[where][:, None] == ids, _HIDDEN, scores)
            return jax.nn.softplus(jax.nn.logsumexp(scores, axis=1) - own[where])

        by_bucket = (self.buckets, -1)
        losses = jax.lax.map(one, (
            where, negative_rows.reshape(*by_bucket, negative_rows.shape[1]),
            negatives.ids.reshape(by_bucket), negatives.log_expected.reshape(by_bucket)))
        table = jnp.full(near.shape, _NOWHERE).at[jnp.arange(self.buckets)[:, None], where].set(
            jnp.where(live[where], losses, _NOWHERE))
        best = jnp.max(table, axis=0)
        kept = best >= 0
        # The step divides by the weight of all positions; the mean is over those with a bucket.
        sizes = jnp.abs(task.weights)
        total = jnp.sum(sizes)
        share = jnp.sum(sizes * kept) / jnp.where(total > 0, total, 1.0)
        return jnp.where(kept, best, 0.0) / jnp.maximum(share, jnp.finfo(jnp.float32).tiny)
