"""A policy gradient: what was shown is a sample of a policy, and its reward says how good it was.

The policy is the softmax over the whole catalogue. For an action a in state s with advantage A
(a reward less a baseline, of either sign) the gradient of the expected reward is that of

    loss = -A log pi(a | s)                             (REINFORCE, Williams, 1992)

so a signed weight on the exact softmax's loss is all there is to it. The sum is divided by the
number of actions, not by the sizes of the advantages.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from rec_jax.objectives.base import Batch, Keys, Needs, Task, next_items
from rec_jax.objectives.full_softmax import FullSoftmax


@dataclass(frozen=True)
class Config(FullSoftmax):
    """Settings of the objective: those of `FullSoftmax`, and

    baseline: what is taken from a reward.
    """

    kind: str = "policy_gradient"
    baseline: float = 0.0

    @property
    def causal(self) -> bool:
        """A state is a position's past."""
        return True

    @property
    def needs(self) -> Needs:
        """The log-normaliser, and the reward of each target."""
        return super().needs._replace(values=("reward",))

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Every next item is an action; its advantage is its weight."""
        del keys, num_items
        task = next_items(batch["targets"])
        present = task.weights != 0
        advantage = batch["values/reward"].reshape(task.weights.shape) - self.baseline
        return task._replace(weights=advantage, present=present,
                             divisor=jnp.sum(present, axis=-1, dtype=jnp.float32))
