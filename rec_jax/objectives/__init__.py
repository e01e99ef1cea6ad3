"""Objectives: which positions predict which items, and what that costs.

One file an objective. Each holds a frozen `Config` that fills `base.Objective`; `OBJECTIVES`
is the one line that names it. Objectives see item rows as arrays and never a table.
"""

from rec_jax.objectives.base import Objective, Task

OBJECTIVES = {
    "masked_item": "rec_jax.objectives.masked_item",
    "next_item": "rec_jax.objectives.next_item",
    "sampled_softmax": "rec_jax.objectives.sampled_softmax",
}

__all__ = ["OBJECTIVES", "Objective", "Task"]
