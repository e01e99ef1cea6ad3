"""Objectives: which positions predict which items, and what that costs.

One file an objective. Each holds a frozen `Config` that fills `base.Objective`; `OBJECTIVES`
is the one line that names it. Objectives see item rows as arrays and never a table.
"""

from rec_jax.objectives.base import Objective, Task

OBJECTIVES = {
    "bce": "rec_jax.objectives.bce",
    "bpr": "rec_jax.objectives.bpr",
    "gbce": "rec_jax.objectives.gbce",
    "hard_negatives": "rec_jax.objectives.hard_negatives",
    "in_batch": "rec_jax.objectives.in_batch",
    "masked_item": "rec_jax.objectives.masked_item",
    "next_item": "rec_jax.objectives.next_item",
    "policy_gradient": "rec_jax.objectives.policy_gradient",
    "q_learning": "rec_jax.objectives.q_learning",
    "random_walk": "rec_jax.objectives.random_walk",
    "rating": "rec_jax.objectives.rating",
    "rating_distribution": "rec_jax.objectives.rating_distribution",
    "sampled_softmax": "rec_jax.objectives.sampled_softmax",
    "sce": "rec_jax.objectives.sce",
    "supervised_q": "rec_jax.objectives.supervised_q",
}

__all__ = ["OBJECTIVES", "Objective", "Task"]
