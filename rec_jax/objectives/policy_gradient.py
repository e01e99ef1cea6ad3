"""A policy gradient: what was shown is a sample of a policy, and its reward says how good it was.

The policy pi is the softmax over the whole catalogue. For an action a in state s with advantage A,
of either sign, the loss of its position is

    -w lambda A log pi(a | s) - entropy * H(pi(. | s))

with w, lambda and A as constants (REINFORCE, Williams, 1992). log pi is the exact softmax's loss,
and H its exact entropy, so nothing is sampled but the log itself.

- A is the return of the action less a baseline. Its return is its own reward and, by `discount`,
  those that follow in the same history, as far as the batch's row has it.
- w = min(pi(a | s) / beta(a | s), cap) corrects for a log of another policy beta: the log's own
  propensities, or each item's share of all labels where nobody wrote them down. A cap makes it a
  little biased and far less noisy.
- lambda = K (1 - pi(a | s))^(K - 1) is the top-K correction (Chen et al., 2019): where K items are
  shown, one that the policy already favours needs no more probability, and others get it. 1 - pi is
  computed from the loss without cancelling.

The sum is divided by the number of actions, not by the sizes of the advantages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rec_jax.objectives.base import (
    Batch,
    Catalogue,
    Keys,
    Needs,
    Task,
    WholeCatalogue,
    check_backend,
    next_items,
)
from rec_jax.objectives.returns import discounted_returns
from rec_jax.ranges import above, at_least, check

Array = jax.Array

PROPENSITY = "propensity"


@dataclass(frozen=True)
class Config(WholeCatalogue):
    """Settings of the objective.

    reward: name of the interactions' rewards, `values/NAME.npy` of the dataset (or rating).
    discount: of the rewards that follow in the same history; 0: an action's own alone.
    baseline: what is taken from a return: `constant`, the mean of the step's returns, or their mean
      at the same place of a history.
    constant: the constant baseline.
    behaviour: the policy that wrote the log: the model's own (no weight), `values/propensity.npy`,
      or popularity, the share of each item among all labels.
    cap: largest weight w; none: as large as it comes.
    slate: K, how many items are shown at once.
    entropy: weight of the entropy, which keeps a policy from settling too early.
    scale, softcap, backend: of the scores, as in `next_item`.
    """

    kind: str = "policy_gradient"
    reward: str = "reward"
    discount: float = 0.0
    baseline: Literal["constant", "mean", "place"] = "constant"
    constant: float = 0.0
    behaviour: Literal["own", "propensity", "popularity"] = "own"
    cap: float | None = 10.0
    slate: int = 1
    entropy: float = 0.0
    scale: float = 1.0
    softcap: float | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        check(self, "objective.", discount=at_least(0, 1), constant=at_least(-1e6, 1e6),
              cap=above(0), slate=at_least(1, 10_000), entropy=at_least(0, 1e6),
              scale=above(0, 1e6), softcap=above(0))
        check_backend(self.backend)

    @property
    def causal(self) -> bool:
        """A state is a position's past."""
        return True

    @property
    def needs(self) -> Needs:
        """The log-normaliser, the rewards, and what says how probable an action was."""
        values = (self.reward, PROPENSITY) if self.behaviour == "propensity" else (self.reward,)
        return Needs(normaliser=True, values=values, log_q=self.behaviour == "popularity")

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Every next item is an action, with its advantage and log beta as values."""
        del keys, num_items
        task = next_items(batch["targets"])
        present = batch["targets"] >= 0
        rewards = jnp.where(present, batch[f"values/{self.reward}"], 0.0)
        returns = discounted_returns(rewards, batch["segments"], self.discount)
        values = {"advantage": returns - self._baseline(returns, present, batch["positions"])}
        if self.behaviour == "propensity":
            values["log_behaviour"] = jnp.log(
                jnp.where(present, batch[f"values/{PROPENSITY}"], 1.0))
        elif self.behaviour == "popularity":
            values["log_behaviour"] = jnp.where(present, batch["log_q"], 0.0)
        count = jnp.sum(present, axis=(1, 2), dtype=jnp.float32)
        return task._replace(divisor=count, values={
            name: value.reshape(task.weights.shape) for name, value in values.items()})

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]`: what the top of the file says."""
        ask = catalogue.entropy if self.entropy else catalogue.softmax
        loss, _, *entropies = ask(queries, task.targets, scale=self.scale, softcap=self.softcap,
                                  backend=self.backend)
        factor = task.values["advantage"] * self.correction(
            jax.lax.stop_gradient(loss), task.values.get("log_behaviour"))
        return factor * loss - sum(self.entropy * each for each in entropies)

    def correction(self, loss: Array, log_behaviour: Array | None) -> Array:
        """w * lambda f32 `[N]` of actions with -log pi `loss`."""
        factor = jnp.ones_like(loss)
        if log_behaviour is not None:
            log_weight = -loss - log_behaviour
            if self.cap is not None:
                log_weight = jnp.minimum(log_weight, jnp.log(jnp.float32(self.cap)))
            factor = jnp.exp(log_weight)
        if self.slate > 1:
            factor *= self.slate * (-jnp.expm1(-loss)) ** (self.slate - 1)
        return factor

    def _baseline(self, returns: Array, present: Array, positions: Array) -> Array:
        """What is taken from each of the returns `[A, B, L]`."""
        if self.baseline == "constant":
            return jnp.float32(self.constant)
        counted = present.astype(jnp.float32)
        if self.baseline == "mean":
            return jnp.sum(returns * counted) / jnp.maximum(jnp.sum(counted), 1.0)
        zeros = jnp.zeros(returns.shape[-1], jnp.float32)
        total, count = (zeros.at[positions].add(x) for x in (returns * counted, counted))
        return (total / jnp.maximum(count, 1.0))[positions]
