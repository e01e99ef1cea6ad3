"""Next item and its value at once: two heads on one encoder, for logs of what people did.

    sqn   softmax loss + value_weight * h(Q(s, a) - target)
    sac   min(Q(s, a), cap)_+ * softmax loss + value_weight * h(Q(s, a) - target)

The softmax over the whole catalogue is exact and scores by the encoder's query; Q scores the same
rows by a second query, a learned linear map of it (`rec_jax.model.heads`); its target is that of
`q_learning`. With `sqn` the values shape the encoder; with `sac` they also say how much a label
counts (as constants). What ranks and recommends is the softmax's query. Xin et al. (SIGIR 2020),
whose two heads have tables of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rec_jax.objectives.base import (
    EVERY,
    Batch,
    Catalogue,
    Keys,
    Needs,
    Search,
    Task,
    WholeCatalogue,
    check_backend,
    next_items,
)
from rec_jax.objectives.q_learning import Config as QLearning
from rec_jax.ranges import above, at_least, check

Array = jax.Array

HEAD = "value"


@dataclass(frozen=True)
class Config(WholeCatalogue):
    """Settings of the objective.

    form: values shape the encoder alone (sqn), or are the factor on a label's loss, too (sac).
    value_weight: of the loss of values.
    cap: largest factor on a label's loss (sac).
    reward, reward_scale, discount, steps, double, huber: as in `q_learning`.
    scale, softcap, backend: of the softmax, as in `next_item`.
    """

    kind: str = "supervised_q"
    form: Literal["sqn", "sac"] = "sqn"
    value_weight: float = 1.0
    cap: float = 10.0
    reward: str = "reward"
    reward_scale: float = 1.0
    discount: float = 0.5
    steps: int = 1
    double: bool = True
    huber: float | None = None
    scale: float = 1.0
    softcap: float | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        check(self, "objective.", value_weight=above(0, 1e6), cap=above(0, 1e6),
              scale=above(0, 1e6), softcap=above(0), discount=at_least(0, 1),
              reward_scale=above(0, 1e6), steps=at_least(1, 1000), huber=above(0))
        check_backend(self.backend)

    @property
    def causal(self) -> bool:
        """A state is a position's past."""
        return True

    @property
    def needs(self) -> Needs:
        """The log-normaliser, labels for their values, and the best item of every state."""
        return Needs(normaliser=True, labels=True, search=EVERY, values=(self.reward,),
                     heads=(HEAD,))

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Every next item is a label and an action."""
        del keys, num_items
        return next_items(batch["targets"])._replace(values=self._q.known(batch))

    def mine(self, task: Task, key: Array, search: Search) -> Task:
        """The task with the target of each position's value."""
        del key
        valued = of_head(search, HEAD)
        return task._replace(values={**task.values, "target": self._q.targets(
            task, valued, valued.queries())})

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]`: what the top of the file says."""
        label, _ = catalogue.softmax(queries, task.targets, scale=self.scale,
                                     softcap=self.softcap, backend=self.backend)
        value = self._q.value(task.values[f"queries/{HEAD}"], catalogue)
        if self.form == "sac":
            label *= jax.lax.stop_gradient(jnp.clip(value, 0.0, self.cap))
        return label + self.value_weight * self._q.error(value - task.values["target"])

    @property
    def _q(self) -> QLearning:
        """What is learned of values."""
        return QLearning(reward=self.reward, reward_scale=self.reward_scale,
                         discount=self.discount, steps=self.steps, double=self.double,
                         huber=self.huber)


def of_head(search: Search, name: str) -> Search:
    """`search` whose queries are those of a head, by the average too."""
    average = None if search.average is None else of_head(search.average, name)
    return search._replace(queries=lambda: search.head(name, search.queries()), average=average)
