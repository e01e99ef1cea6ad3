"""Hard negatives: the catalogue's best wrong items for queries of the step, and uniform ones.

Some queries of a step are asked for their best items (`rec_jax.kernels.top_k` over the whole
table, the label excluded). All positions are scored against the union H of what they find and
against a uniform sample S,

    Z_i = exp(s_iy) + sum over j in H, j != y, of exp(s_ij)
                    + sum over j in S, not in H, j != y, of exp(s_ij) / n,   n = |S| / V,

so the large terms are there for certain and the many small ones are estimated: given H, Z is an
unbiased estimate of the whole softmax's. With H or S the catalogue it is the softmax. ANCE
(Xiong et al., ICLR 2021) mines negatives by the model that is trained; here the index is the
table itself, so they are never stale.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rec_jax.objectives.base import Catalogue, Needs, Search, Task, check_backend
from rec_jax.objectives.negatives import first_of_each, sampled_softmax, uniform
from rec_jax.objectives.sampled import Negatives, NextItemAgainstDrawn, against
from rec_jax.ranges import above, at_least, check

Array = jax.Array


@dataclass(frozen=True)
class Config(NextItemAgainstDrawn):
    """Settings of the objective.

    queries: positions of a step, chosen by chance, that look for their best items; at most all.
    hard: items that each finds.
    uniform: items that are drawn besides, all different; at most the catalogue, may be 0.
    scale: factor on every score.
    backend: of the loss's kernel: auto, or one of `rec_jax.kernels.dispatch.BACKENDS`.
    """

    kind: str = "hard_negatives"
    queries: int = 64
    hard: int = 16
    uniform: int = 1024
    scale: float = 1.0
    backend: str = "auto"

    def __post_init__(self) -> None:
        # A positive scale, so that the best items are the hard ones.
        check(self, "objective.", queries=at_least(1), hard=at_least(1), uniform=at_least(0),
              scale=above(0, 1e6))
        check_backend(self.backend)

    @property
    def needs(self) -> Needs:
        """The rows of the labels, and a search for some of the queries."""
        return Needs(labels=True, search=self.queries)

    def drawn(self, positions: int) -> int:
        """Rows a step: hard and uniform ones."""
        return min(self.queries, positions) * self.hard + self.uniform

    def pairs(self, positions: int, num_items: int) -> int:
        """Every position is scored against all of them."""
        del num_items
        return positions * self.drawn(positions)

    def mine(self, task: Task, key: Array, search: Search) -> Task:
        """The task with the step's negatives.

        Raises:
          InputError: fewer items than `uniform`.
        """
        choose, sample = jax.random.split(key)
        assert task.present is not None
        labelled, targets = task.present.reshape(-1), task.targets.reshape(-1)
        chance = jnp.where(labelled, jax.random.uniform(choose, targets.shape), -1.0)
        chance, chosen = jax.lax.top_k(chance, min(self.queries, targets.size))
        queries = search.queries()
        queries = queries.reshape(-1, queries.shape[-1])[chosen]
        _, found = search.top_k(queries, min(self.hard, search.num_items),
                                targets[chosen][:, None])
        ids = jnp.where((chance >= 0)[:, None], found, -1).reshape(-1)
        log_expected = jnp.zeros(ids.shape, jnp.float32)
        if self.uniform:
            drawn = uniform(sample, search.num_items, self.uniform)
            ids = jnp.concatenate([ids, drawn.ids])
            log_expected = jnp.concatenate([log_expected, drawn.log_expected])
        # Of equal items the first counts: a hard one before a uniform one.
        counts = first_of_each(ids) & (ids >= 0)
        return against(task, Negatives(jnp.maximum(ids, 0),
                                       jnp.where(counts, log_expected, jnp.inf)))

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]` from queries `[N, d]`; see `negatives.sampled_softmax`."""
        return sampled_softmax(queries, task, catalogue, scale=self.scale, backend=self.backend)
