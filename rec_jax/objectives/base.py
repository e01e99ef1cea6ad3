"""What every objective gives to the training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax

if TYPE_CHECKING:
    from rec_jax.objectives.negatives import Negatives


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
    """The frozen dataclass beside an objective: a `CatalogueObjective` or a `SampledObjective`."""

    @property
    def kind(self) -> str: ...

    @property
    def causal(self) -> bool:
        """Whether a position may see only what came before it."""
        ...

    @property
    def num_negatives(self) -> int | None:
        """Items that a step scores besides the targets; None: the whole catalogue."""
        ...

    def task(self, items: jax.Array, targets: jax.Array, segments: jax.Array,
             key: jax.Array) -> Task:
        """From `[B, L]` int32 inputs, next items (-1: none) and segments, choose the task."""
        ...


class CatalogueObjective(Objective, Protocol):
    """A loss made of the exact softmax's loss and lse; `num_negatives` is None.

    scale, softcap, backend: how the kernel scores. needs_mean_row: whether `combine` wants it.
    """

    scale: float
    softcap: float | None
    backend: str

    @property
    def needs_mean_row(self) -> bool: ...

    def combine(self, loss: jax.Array, lse: jax.Array, queries: jax.Array,
                mean_row: jax.Array | None) -> jax.Array:
        """Loss of each position, f32 `[N]`, from loss and lse `[N]`, queries `[N, d]` and the
        mean item row f32 `[d]`."""
        ...


class SampledObjective(Objective, Protocol):
    """A loss against `num_negatives` rows that a step draws."""

    def draw(self, key: jax.Array, num_items: int) -> Negatives:
        """The negatives of one step."""
        ...

    def loss_of_rows(self, queries: jax.Array, label_rows: jax.Array, negative_rows: jax.Array,
                     targets: jax.Array, negatives: Negatives) -> jax.Array:
        """f32 `[N]` from queries and label rows `[N, d]` and negative rows `[K, d]`."""
        ...
