"""Who is near whom in a graph, without labels: the unsupervised loss of GraphSAGE.

    loss_i = -log sigmoid(s(a, b)) - sum over drawn j of log(1 - sigmoid(s(a, j)))

where b is the end of a short random walk from a, and s the product of their vectors (Hamilton et
al., NeurIPS 2017, equation 1, with the sum over Q drawn items for their Q times the mean). Each
place of a history gives two such pairs, from its user and from its item, and the loss is the mean
of both: the first is what a recommendation asks, the second puts items near each other that the
same people took. Negatives are drawn from all items alike; the paper draws by degree^(3/4).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.objectives import bce
from rec_jax.objectives.base import Batch, Catalogue, Ids, Keys, Needs, Task
from rec_jax.ranges import at_least, check

Array = jax.Array
STARTS = "starts"
"""The name of the vectors of the items that walks begin at."""


@dataclass(frozen=True)
class Config(bce.Config):
    """Settings of the objective: those of `bce`, with the negatives of all positions shared, and

    shared: true, as the two pairs of a place have the same negatives.
    turns: T, how long a walk may be.
    """

    kind: str = "random_walk"
    count: int = 64
    shared: bool = True
    turns: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "objective.", turns=at_least(1, 64))
        if not self.shared:
            raise InputError("objective.shared is false; expected true: the two pairs of a place "
                             "have the same negatives")

    @property
    def needs(self) -> Needs:
        """Walks, and the vectors of where they end."""
        return super().needs._replace(walks=self.turns)

    def drawn(self, positions: int) -> int:
        """Rows a step."""
        return super().drawn(2 * positions) + 2 * positions

    def pairs(self, positions: int, num_items: int) -> int:
        """Two of each place."""
        return super().pairs(2 * positions, num_items)

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Every place of a history is near where the walks from its user and its item end."""
        there = batch["segments"] > 0
        task = super().plan({**batch, "targets": jnp.where(there, batch["walks/users"], -1)}, keys,
                            num_items)
        shape = task.targets.shape
        present = there.reshape(shape)
        return task._replace(reads={
            **task.reads, STARTS: Ids(batch["items"].reshape(shape), present),
            "ends": Ids(batch["walks/items"].reshape(shape), present)})

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]` from queries `[N, d]`, the vectors of users."""
        by_item = task._replace(targets=task.reads["ends"].ids)
        return (self._pairs(queries, task, catalogue, "labels")
                + self._pairs(catalogue.rows(STARTS), by_item, catalogue, "ends")) / 2

    def _pairs(self, starts: Array, task: Task, catalogue: Catalogue, ends: str) -> Array:
        starts, count = starts.astype(jnp.float32), self.count
        own = self.scale * jnp.sum(starts * catalogue.rows(ends).astype(jnp.float32), axis=-1)
        rows = catalogue.rows(bce.NEGATIVES)
        wrong = bce.sum_over_shared(starts, rows, task.targets, task.constants.ids, self.scale)
        return (jax.nn.softplus(-own) + wrong) / (count + 1)
