"""Next item against sampled negatives: what a step costs follows the rows that it touches.

An approximation of `next_item`, by name: see `rec_jax.objectives.negatives` for the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax

from rec_jax.objectives.base import Batch, Catalogue, Keys, Task, check_backend
from rec_jax.objectives.negatives import log_uniform, sampled_softmax, uniform
from rec_jax.objectives.sampled import NextItemAgainstDrawn, against
from rec_jax.ranges import above, at_least, check

Array = jax.Array


@dataclass(frozen=True)
class Config(NextItemAgainstDrawn):
    """Settings of the objective.

    negatives: uniform (all different), or log_uniform, for item ids in the order of falling
      popularity.
    count: negatives of a step, shared by all its positions; with uniform at most the catalogue,
      and the catalogue itself makes the loss exact.
    scale: factor on every score.
    backend: of the kernel: auto, or one of `rec_jax.kernels.dispatch.BACKENDS`.
    """

    kind: str = "sampled_softmax"
    negatives: Literal["uniform", "log_uniform"] = "uniform"
    count: int = 8192
    scale: float = 1.0
    backend: str = "auto"

    def __post_init__(self) -> None:
        check(self, "objective.", count=at_least(1), scale=above(0, 1e6))
        check_backend(self.backend)

    def drawn(self, positions: int) -> int:
        """Rows a step: the same for any number of positions."""
        del positions
        return self.count

    def pairs(self, positions: int, num_items: int) -> int:
        """Every position is scored against every negative."""
        del num_items
        return positions * self.count

    def plan(self, batch: Batch, keys: Keys, num_items: int) -> Task:
        """Next items, and the negatives of the step.

        Raises:
          InputError: uniform negatives are different, and `num_items` are too few for it.
        """
        sampler = uniform if self.negatives == "uniform" else log_uniform
        return against(super().plan(batch, keys, num_items),
                       sampler(keys.step, num_items, self.count))

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]` from queries `[N, d]`; see `negatives.sampled_softmax`."""
        return sampled_softmax(queries, task, catalogue, scale=self.scale, backend=self.backend)
