"""What every objective gives to the training step."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax


class Task(NamedTuple):
    """Which positions of a batch predict what. N is static.

    where: int32 `[N]`, flat position in `[B * L]` whose query is used; None means all of
      them in order (N = B * L), which saves a gather.
    targets: int32 `[N]`, item to predict (any valid item where the weight is 0).
    weights: f32 `[N]`, 0 switches a position off.
    hidden: bool `[B, L]` or None: input positions whose item is hidden from the encoder.
    """

    where: jax.Array | None
    targets: jax.Array
    weights: jax.Array
    hidden: jax.Array | None = None


class Objective(Protocol):
    """The frozen dataclass beside an objective."""

    @property
    def kind(self) -> str: ...

    @property
    def causal(self) -> bool:
        """Whether a position may see only what came before it."""
        ...

    def task(self, items: jax.Array, targets: jax.Array, segments: jax.Array,
             key: jax.Array) -> Task:
        """From `[B, L]` int32 inputs, next items (-1: none) and segments, choose the task."""
        ...

    def loss(self, queries: jax.Array, rows: jax.Array, task: Task, *, num_items: int,
             key: jax.Array) -> jax.Array:
        """Loss of each position, f32 `[N]`, unweighted; `rows [V_padded, d]`."""
        ...
