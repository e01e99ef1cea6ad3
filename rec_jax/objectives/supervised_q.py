"""Next item and its value at once: two heads on one encoder, for logs of what people did.

    sqn   softmax loss + value_weight * h(Q(s, a) - target)
    sac   min(Q(s, a), cap)_+ * softmax loss + value_weight * h(Q(s, a) - target)
    advantage   min(A(s, a), cap)_+ * softmax loss + value_weight * h(Q(s, a) - target)
                with A(s, a) = Q(s, a) - mean of Q(s, b) over `compared` drawn items b

The softmax over the whole catalogue is exact and scores by the encoder's query; Q scores the same
rows by a second query, a learned linear map of it (`rec_jax.model.heads`); its target is that of
`q_learning`. With `sqn` the values shape the encoder; with `sac` they also say how much a label
counts (as constants). Where values are all above 0, most of a value says how good the state is,
and not the item: `advantage` takes that off, and labels that are no better than others do not
count. The drawn items are the same for a step, so their mean row is all that is read of them. What
ranks and recommends is the softmax's query, or with `ranks_by = "value"` that of the values: the
items that are worth most, and not those that are taken most. Xin et al. (SIGIR 2020), whose two
heads have tables of their own; the advantage is that of their SA2C (WSDM 2022).
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
    Ids,
    Keys,
    Needs,
    Search,
    Task,
    WholeCatalogue,
    check_backend,
    next_items,
)
from rec_jax.objectives.negatives import uniform
from rec_jax.objectives.q_learning import Config as QLearning
from rec_jax.ranges import above, at_least, check

Array = jax.Array

HEAD, COMPARED = "value", "compared"


@dataclass(frozen=True)
class Config(WholeCatalogue):
    """Settings of the objective.

    form: values shape the encoder alone (sqn), or they (sac), or what they are above those of other
      items (advantage), are the factor on a label's loss, too.
    ranks_by: which of the two heads ranks and recommends.
    value_weight: of the loss of values.
    cap: largest factor on a label's loss (sac, advantage).
    compared: items, drawn for each step, whose mean value an advantage is above.
    reward, reward_scale, discount, steps, double, huber: as in `q_learning`.
    scale, softcap, backend: of the softmax, as in `next_item`.
    """

    kind: str = "supervised_q"
    form: Literal["sqn", "sac", "advantage"] = "sqn"
    ranks_by: Literal["softmax", "value"] = "softmax"
    value_weight: float = 1.0
    cap: float = 10.0
    compared: int = 64
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
              compared=at_least(1, 1_000_000), scale=above(0, 1e6), softcap=above(0),
              discount=at_least(0, 1), reward_scale=above(0, 1e6), steps=at_least(1, 1000),
              huber=above(0))
        check_backend(self.backend)

    @property
    def causal(self) -> bool:
        """A state is a position's past."""
        return True

    @property
    def needs(self) -> Needs:
        """The log-normaliser, labels for their values, and the best item of every state."""
        return Needs(normaliser=True, labels=True, search=EVERY, values=(self.reward,),
                     heads=(HEAD,), ranks=HEAD if self.ranks_by == "value" else None)

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Every next item is a label and an action; with items to compare it with."""
        task = next_items(batch["targets"])._replace(values=self._q.known(batch))
        if self.form != "advantage":
            return task
        ids = uniform(keys.step, num_items, min(self.compared, num_items)).ids
        return task._replace(shared={COMPARED: Ids(ids, jnp.ones(ids.shape, bool))})

    def drawn(self, positions: int) -> int:
        """Rows of the items to compare with."""
        del positions
        return self.compared if self.form == "advantage" else 0

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
        if self.form != "sqn":
            counts = value
            if self.form == "advantage":
                usual = jnp.mean(catalogue.rows(COMPARED).astype(jnp.float32), axis=0)
                counts -= self._q.scale * task.values[f"queries/{HEAD}"].astype(jnp.float32) @ usual
            label *= jax.lax.stop_gradient(jnp.clip(counts, 0.0, self.cap))
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
