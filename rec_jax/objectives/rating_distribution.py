"""The divergence from each user's distribution of ratings: softmax(U^T V), fitted to ratings.

A history is one query, that of its last place, and what it should give is a distribution over the
items of the history's labels, p_j = r_j^power / sum of r^power:

    KL(p || softmax(scores)) = lse - sum_j p_j s_j + sum_j p_j log p_j

with one log-normaliser a history, however many items were rated. A step's loss is the mean over its
histories, each of which may count by a power of its number n of labels: with n^0 all are alike, and
with n^1 all labels are, which is the likelihood of draws from each user's softmax (Liang et al.,
WWW 2018). With the encoder `user` every
item of a user is a label, and a step's N queries are its users; with one that reads histories it is
the items that come next, of which the query has seen all but the last: hence the user's own row is
what it is made for.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rec_jax.objectives.base import (
    Batch,
    Catalogue,
    Keys,
    Labels,
    Needs,
    Task,
    history_of_places,
)
from rec_jax.objectives.full_softmax import FullSoftmax
from rec_jax.ranges import at_least, check

Array = jax.Array


@dataclass(frozen=True)
class Config(FullSoftmax):
    """Settings of the objective: those of `FullSoftmax`, and

    power: of the ratings, which sharpens their distribution above 1 and flattens it below; 0: all
      items of a user alike, and the dataset needs no ratings. Items whose rating is not above 0
      are no labels otherwise.
    count_power: of the number of a history's labels, by which its divergence counts; 0: all
      histories alike, 1: all labels alike.
    """

    kind: str = "rating_distribution"
    power: float = 1.0
    count_power: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "objective.", power=at_least(0, 100), count_power=at_least(0, 1))

    @property
    def causal(self) -> bool:
        """A position sees only its past."""
        return True

    @property
    def needs(self) -> Needs:
        """The log-normaliser, where histories end, and the rating of each target."""
        return super().needs._replace(values=("rating",) if self.power else (), histories=True)

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """The last place of a history predicts all of its targets, weighted by their ratings."""
        del keys, num_items
        targets = batch["targets"]
        rated = batch["values/rating"] if self.power else jnp.ones(targets.shape, jnp.float32)
        one = functools.partial(distributions, power=self.power, count_power=self.count_power)
        return jax.vmap(one)(targets, batch["segments"], batch["histories"],
                             jnp.where(targets >= 0, jnp.maximum(rated, 0.0), 0.0))

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]`: the divergence."""
        return super().loss(queries, task, catalogue) + task.values["negative_entropy"]


def distributions(targets: Array, segments: Array, histories: Array, rated: Array,
                  power: float, count_power: float = 0.0) -> Task:
    """The task of one micro-batch: query i is that of history i of its row, N = B * S.

    targets, segments: int32 `[B, L]`; histories: int32 `[B, S]`, where each ends, -1 for none;
    rated: f32 `[B, L]`, 0 where there is no label.
    """
    rows, length = targets.shape
    most = histories.shape[1]
    flat, value = history_of_places(segments, most), rated.reshape(-1)
    # Relative to the history's best, high powers are numbers as well.
    best = jnp.zeros(rows * most).at[flat].max(value)[flat]
    weight = jnp.where(value > 0, (value / jnp.where(best > 0, best, 1.0)) ** power, 0.0)
    total = jnp.zeros(rows * most).at[flat].add(weight)
    share = weight / jnp.where(total > 0, total, 1.0)[flat]
    terms = share * jnp.log(jnp.where(share > 0, share, 1.0))
    where = (jnp.maximum(histories, 0) + length * jnp.arange(rows)[:, None]).reshape(-1)
    labels = jnp.maximum(targets, 0).reshape(-1)
    present = (histories.reshape(-1) >= 0) & (total > 0)
    counted = jnp.zeros(rows * most).at[flat].add(value > 0) ** count_power if count_power else 1.0
    return Task(where.astype(jnp.int32), labels[where], jnp.where(present, counted, 0.0),
                labels=Labels(flat, labels, share),
                values={"negative_entropy": jnp.zeros(rows * most).at[flat].add(terms)})
