"""Binary cross-entropy: is this item the next one? Asked of the label and of k drawn items.

    loss_i = (-log sigmoid(s_iy) - sum over drawn j of log(1 - sigmoid(s_ij))) / (k + 1)

SASRec (Kang & McAuley, ICDM 2018) draws k = 1 item for each position. Few negatives make a model
overconfident; `gbce` corrects for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.objectives.base import Batch, Catalogue, Ids, Keys, Task
from rec_jax.objectives.negatives import uniform
from rec_jax.objectives.sampled import NEGATIVES, NextItemAgainstDrawn, against
from rec_jax.ranges import above, at_least, check

Array = jax.Array

_CHUNK = 128  # shared negatives that are scored at a time


@dataclass(frozen=True)
class Config(NextItemAgainstDrawn):
    """Settings of the objective.

    count: k, negatives of a position.
    shared: whether all positions of a step have the same k different negatives; else each draws
      its own from all items but its label, with repetition, and a step holds k rows for every
      position.
    scale: factor on every score.
    """

    kind: str = "bce"
    count: int = 1
    shared: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        check(self, "objective.", count=at_least(1), scale=above(0, 1e6))

    def drawn(self, positions: int) -> int:
        """Rows a step."""
        return self.count if self.shared else positions * self.count

    def pairs(self, positions: int, num_items: int) -> int:
        """Every position is scored against k items."""
        del num_items
        return positions * self.count

    def positive_weight(self, num_items: int) -> float:
        """Factor on the label's term."""
        del num_items
        return 1.0

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Next items, and the negatives of the step.

        Raises:
          InputError: there are too few items for it.
        """
        task = super().plan(batch, keys, num_items)
        if self.shared:
            return against(task, uniform(keys.step, num_items, self.count))
        if num_items < 2:
            raise InputError("a catalogue of 1 item has no negatives; expected at least 2 items")
        shape = (*task.targets.shape, self.count)
        ids = jax.random.randint(keys.step, shape, 0, num_items - 1, jnp.int32)
        ids = ids + (ids >= task.targets[..., None])  # leave the label out
        present = jnp.broadcast_to(task.weights[..., None] != 0, shape)
        return task._replace(reads={NEGATIVES: Ids(ids, present)})

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]` from queries `[N, d]`."""
        precise, rows = queries.astype(jnp.float32), catalogue.rows(NEGATIVES)
        own = self.scale * jnp.sum(precise * catalogue.rows("labels").astype(jnp.float32), axis=-1)
        if self.shared:
            wrong = sum_over_shared(queries, rows, task.targets, task.constants.ids, self.scale)
        else:
            scores = jnp.einsum("nd,nkd->nk", precise, rows.astype(jnp.float32))
            wrong = jnp.sum(jax.nn.softplus(self.scale * scores), axis=1)
        weight = self.positive_weight(catalogue.num_items)
        return (weight * jax.nn.softplus(-own) + wrong) / (self.count + 1)


def sum_over_shared(queries: Array, rows: Array, targets: Array, ids: Array,
                    scale: float, own: Array | None = None) -> Array:
    """f32 `[N]`: sum over `rows` `[K, d]` of -log(1 - sigmoid(score)), without the label.

    own: `[N]`, taken from all scores first.

    Holds scores of N x 128, and makes them again for the backward pass.
    """
    size = min(_CHUNK, ids.size)
    spare = -ids.size % size
    used = jnp.arange(ids.size + spare) < ids.size
    parts = (jnp.pad(rows, ((0, spare), (0, 0))).reshape(-1, size, rows.shape[1]),
             jnp.pad(ids, (0, spare)).reshape(-1, size), used.reshape(-1, size))

    @jax.checkpoint
    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, Any]:
        rows, ids, used = part
        scores = scale * jnp.dot(queries, rows.astype(queries.dtype).T,
                                 preferred_element_type=jnp.float32)
        scores = scores if own is None else scores - own[:, None]
        wrong = used & (ids != targets[:, None])
        return total + jnp.sum(jnp.where(wrong, jax.nn.softplus(scores), 0.0), axis=1), None

    return jax.lax.scan(add, jnp.zeros(queries.shape[0], jnp.float32), parts)[0]
