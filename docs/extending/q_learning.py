"""Q-learning: the value of showing an item is its reward and the best value of what comes then.

    Q(s, a) = q_s . w_a,   target = r + gamma max_b Q(s', b),   loss = (Q(s, a) - target)^2 / 2

s' is the next place of the same history; after the last one nothing comes. The maximum is over
the whole catalogue, found exactly (`Catalogue.top_k`), and is a constant in the gradient. Watkins
& Dayan, 1992; over a catalogue: Chen et al., 2019, give the alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rec_jax.objectives.base import Batch, Catalogue, Keys, Needs, Task, next_items
from rec_jax.ranges import at_least, check

Array = jax.Array


@dataclass(frozen=True)
class Config:
    """Settings of the objective.

    gamma: weight of what comes after.
    """

    kind: str = "q_learning"
    gamma: float = 0.9

    def __post_init__(self) -> None:
        check(self, "objective.", gamma=at_least(0, 1))

    @property
    def causal(self) -> bool:
        """A state is a position's past."""
        return True

    @property
    def needs(self) -> Needs:
        """The rows of the actions, and their rewards."""
        return Needs(labels=True, values=("reward",))

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Every next item is an action; whether a place follows it in its history is a value."""
        del keys, num_items
        task = next_items(batch["targets"])
        segments = batch["segments"]
        after = jnp.pad(segments[..., 1:], ((0, 0), (0, 0), (0, 1)))
        follows = (segments == after) & (segments > 0)
        return task._replace(values={
            "reward": batch["values/reward"].reshape(task.weights.shape),
            "follows": follows.reshape(task.weights.shape).astype(jnp.float32)})

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]`, half the square of what is missing to the target."""
        precise = queries.astype(jnp.float32)
        value = jnp.sum(precise * catalogue.rows("labels").astype(jnp.float32), axis=-1)
        best = catalogue.top_k(queries, 1)[0][:, 0]
        target = task.values["reward"] + self.gamma * task.values["follows"] * jnp.roll(best, -1)
        return 0.5 * jnp.square(value - jax.lax.stop_gradient(target))

    def drawn(self, positions: int) -> int:
        """No row but those of the actions."""
        del positions
        return 0

    def pairs(self, positions: int, num_items: int) -> int:
        """Every state is scored against every item."""
        return positions * num_items
