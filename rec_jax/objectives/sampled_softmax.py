"""Next item against sampled negatives: what a step costs follows the rows that it touches.

An approximation of `next_item`, by name: see `rec_jax.objectives.negatives` for the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.objectives.base import Task
from rec_jax.objectives.negatives import Negatives, log_uniform, sampled_softmax, uniform


@dataclass(frozen=True)
class Config:
    """Settings of the objective.

    negatives: uniform (all different), or log_uniform, for item ids in the order of falling
      popularity.
    count: negatives of a step, shared by all its positions; with uniform at most the catalogue,
      and the catalogue itself makes the loss exact.
    scale: factor on every score.
    """

    kind: str = "sampled_softmax"
    negatives: Literal["uniform", "log_uniform"] = "uniform"
    count: int = 8192
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"objective.count is {self.count}; expected at least 1")

    @property
    def causal(self) -> bool:
        """A position sees only its past."""
        return True

    @property
    def num_negatives(self) -> int:
        """Negatives of a step."""
        return self.count

    def task(self, items: jax.Array, targets: jax.Array, segments: jax.Array,
             key: jax.Array) -> Task:
        """Every position that has a next item predicts it."""
        del items, segments, key
        flat = targets.reshape(-1)
        return Task(None, jnp.maximum(flat, 0), (flat >= 0).astype(jnp.float32))

    def draw(self, key: jax.Array, num_items: int) -> Negatives:
        """The negatives of one step.

        Raises:
          InputError: uniform negatives are different, and `num_items` are too few for it.
        """
        sampler = uniform if self.negatives == "uniform" else log_uniform
        return sampler(key, num_items, self.count)

    def loss_of_rows(self, queries: jax.Array, label_rows: jax.Array, negative_rows: jax.Array,
                     targets: jax.Array, negatives: Negatives) -> jax.Array:
        """f32 `[N]` from queries and label rows `[N, d]` and negative rows `[K, d]`."""
        return sampled_softmax(queries, label_rows, negative_rows, targets, negatives,
                               scale=self.scale)
