"""Q-learning over the whole catalogue: the value of showing an item, and of what comes then.

    Q(s, a) = scale * q_s . w_a
    target  = r_t + g r_{t+1} + ... + g^(n-1) r_{t+n-1} + g^n max_b Q(s_{t+n}, b)
    loss    = h(Q(s, a) - target) + conservative * (log sum_b exp Q(s, b) - Q(s, a))

s_{t+n} is n places further in the same history; past its end nothing comes. The maximum is over
every item, found exactly, and constant in the gradient. With a moving average of the weights
(`train.ema`) it is the target network: the average's Q counts, at the item that the current weights
hold to be best (double Q-learning, van Hasselt et al., 2016), or at its own best one. h is half the
square, or Huber's loss.

The conservative term (CQL, Kumar et al., 2020) pushes down what the log never tried; its
log-sum-exp is the engine's own, so with it the table is dense or streamed, and sparse without it.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from rec_jax.objectives.returns import first_rewards, follows
from rec_jax.ranges import above, at_least, check

Array = jax.Array


@dataclass(frozen=True)
class Config(WholeCatalogue):
    """Settings of the objective.

    reward: name of the interactions' rewards, `values/NAME.npy` of the dataset (or rating).
    reward_scale: factor on them, so that values are of a size that weights reach soon.
    discount: g, the weight of what comes a place later.
    steps: n, rewards that are counted before a value is believed.
    double: the current weights choose the best item, and the average says its value.
    huber: error from which on the loss grows linearly; none: it is half the square.
    conservative: weight of the conservative term.
    scale, backend: of the scores, as in `next_item`.
    """

    kind: str = "q_learning"
    reward: str = "reward"
    reward_scale: float = 1.0
    discount: float = 0.9
    steps: int = 1
    double: bool = True
    huber: float | None = None
    conservative: float = 0.0
    scale: float = 1.0
    backend: str = "auto"

    def __post_init__(self) -> None:
        check(self, "objective.", reward_scale=above(0, 1e6), discount=at_least(0, 1),
              steps=at_least(1, 1000), huber=above(0), conservative=at_least(0, 1e6),
              scale=above(0, 1e6))
        check_backend(self.backend)

    @property
    def causal(self) -> bool:
        """A state is a position's past."""
        return True

    @property
    def needs(self) -> Needs:
        """The rewards, and the best item of every state; every row where it is conservative."""
        conservative = self.conservative > 0
        return Needs(normaliser=conservative, labels=not conservative, search=EVERY,
                     values=(self.reward,))

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Every next item is an action, with the rewards that are counted."""
        del keys, num_items
        return next_items(batch["targets"])._replace(values=self.known(batch))

    def known(self, batch: Batch) -> dict[str, Array]:
        """Values `[A, N]` that a target is made of: rewards, and g^n where there is more."""
        flat = (batch["targets"].shape[0], -1)
        rewards = self.reward_scale * jnp.where(
            batch["targets"] >= 0, batch[f"values/{self.reward}"], 0.0)
        gained = first_rewards(rewards, batch["segments"], self.discount, self.steps)
        more = follows(batch["segments"], self.steps).astype(jnp.float32)
        return {"gained": gained.reshape(flat),
                "more": self.discount ** self.steps * more.reshape(flat)}

    def mine(self, task: Task, key: Array, search: Search) -> Task:
        """The task with the target of each position."""
        del key
        return task._replace(values={**task.values, "target": self.targets(
            task, search, search.queries())})

    def targets(self, task: Task, search: Search, queries: Array) -> Array:
        """f32 `[A, N]` from the current queries `[A, N, d]` of the same positions."""
        late = search if search.average is None else search.average
        width = queries.shape[-1]
        steady = queries if late is search else late.queries()
        if self.double and late is not search:
            _, best = search.top_k(queries.reshape(-1, width), 1, None)
            value = late.scores(steady.reshape(-1, width), jnp.maximum(best[:, 0], 0))
        else:
            value = late.top_k(steady.reshape(-1, width), 1, None)[0][:, 0]
        ahead = jnp.roll(self.scale * value.reshape(task.targets.shape), -self.steps, axis=-1)
        more = task.values["more"]
        return task.values["gained"] + jnp.where(more > 0, more * ahead, 0.0)

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]`: what the top of the file says."""
        if not self.conservative:
            return self.error(self.value(queries, catalogue) - task.values["target"])
        above_label, lse = catalogue.softmax(queries, task.targets, scale=self.scale,
                                             backend=self.backend)
        return (self.error(lse - above_label - task.values["target"])
                + self.conservative * above_label)

    def value(self, queries: Array, catalogue: Catalogue) -> Array:
        """f32 `[N]`, Q of the actions."""
        rows = catalogue.rows("labels").astype(jnp.float32)
        return self.scale * jnp.sum(queries.astype(jnp.float32) * rows, axis=-1)

    def error(self, difference: Array) -> Array:
        """h."""
        square = 0.5 * jnp.square(difference)
        if self.huber is None:
            return square
        size = jnp.abs(difference)
        return jnp.where(size <= self.huber, square, self.huber * (size - 0.5 * self.huber))
