"""What every objective gives to the training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.kernels import Backend
from rec_jax.kernels.dispatch import BACKENDS


class Task(NamedTuple):
    """Which positions of a batch predict what. N is static.

    where: int32 `[N]`, flat position in `[B * L]` whose query is used; None means all of
      them in order (N = B * L), which saves a gather.
    targets: int32 `[N]`, item to predict (any valid item where there is none).
    weights: f32 `[N]`, factor on the loss of each position; negative ones push away.
    hidden: bool `[B, L]` or None: input positions whose item is hidden from the encoder.
    present: bool `[N]`, which positions have a target; None: those whose weight is not 0.
    divisor: f32 `[]`, what the sum of weighted losses is divided by, added over the micro-batches
      of a step; None: the sum of the sizes of the weights, so that the loss is their mean.
    """

    where: jax.Array | None
    targets: jax.Array
    weights: jax.Array
    hidden: jax.Array | None = None
    present: jax.Array | None = None
    divisor: jax.Array | None = None

    def settled(self) -> Task:
        """The task with `present` and `divisor`, and weight 0 where there is no target."""
        present = self.weights != 0 if self.present is None else self.present
        weights = jnp.where(present, self.weights, 0.0)
        divisor = (jnp.sum(jnp.abs(weights)) if self.divisor is None
                   else jnp.asarray(self.divisor, jnp.float32))
        return self._replace(weights=weights, present=present, divisor=divisor)


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
        """Negatives that all positions of a step share; None: the whole catalogue is scored.
        0 where their number follows that of the positions."""
        ...

    def task(self, items: jax.Array, targets: jax.Array, segments: jax.Array,
             key: jax.Array) -> Task:
        """From `[B, L]` int32 inputs, targets (-1: none) and segments, choose the task.

        targets: the next items; where the objective is not causal, the inputs themselves, and
        the newest item is an input too.
        """
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


Softmax = Callable[..., tuple[jax.Array, jax.Array]]
"""`(queries [N, d], rows [K, d], targets [N], *, bias [K], logit_scale, backend) -> loss, lse`:
`rec_jax.kernels.softmax_loss`, or the same on a mesh for rows that all devices hold."""


class Negatives(NamedTuple):
    """Items that a step scores against, and how many of each were to be expected.

    ids: int32 `[K]`, shared by all positions of the step, or `[A, N, k]`, k of each position of
      A micro-batches (`[N, k]` when the loss of one is computed).
    log_expected: f32, as `ids`: log of the expected number of this item among the draws; inf:
      the slot is empty.
    aux: whatever else the objective needs again for the loss; the same for all micro-batches.
    """

    ids: jax.Array
    log_expected: jax.Array
    aux: Any = None


class Scene(NamedTuple):
    """What an objective may look at when it draws a step's negatives, for A micro-batches.

    num_items: V.
    targets: `[A, N]`, as in `Task`; weights: f32 `[A, N]`, 0 where there is no target.
    log_q: f32 `[A, N]`, log of each target's share of all labels of the data; None unless the
      objective `needs_log_q`.
    queries: () -> `[A, N, d]`, the encoder's, without dropout, as constants: one more forward
      pass.
    best: (queries `[n, d]`, k, exclude int32 `[n, s]` or None) -> scores f32 and ids int32
      `[n, k]` of the best items of the catalogue, -1 where there are none: one more pass over
      the table.
    """

    num_items: int
    targets: jax.Array
    weights: jax.Array
    log_q: jax.Array | None
    queries: Callable[[], jax.Array]
    best: Callable[[jax.Array, int, jax.Array | None], tuple[jax.Array, jax.Array]]


class SampledObjective(Objective, Protocol):
    """A loss against rows that a step draws."""

    @property
    def needs_log_q(self) -> bool:
        """Whether batches must carry the frequencies of their targets."""
        ...

    @property
    def mined(self) -> int:
        """Queries for which a step scans the catalogue."""
        ...

    def drawn(self, positions: int) -> int:
        """Rows that a step of so many positions draws."""
        ...

    def pairs(self, positions: int) -> int:
        """Scores that a step of so many positions computes."""
        ...

    def draw(self, key: jax.Array, scene: Scene) -> Negatives:
        """The negatives of one step."""
        ...

    def loss_of_rows(self, queries: jax.Array, label_rows: jax.Array, negative_rows: jax.Array,
                     task: Task, negatives: Negatives, softmax: Softmax) -> jax.Array:
        """f32 `[N]` from queries and label rows `[N, d]` and the rows of `negatives.ids`, f32
        `[K, d]` or `[N, k, d]`. Arrays are global: a position may look at any other's."""
        ...


def check_backend(backend: Any) -> None:
    """Refuse a name that no backend of the kernels has.

    Raises:
      InputError: with the names there are.
    """
    if not isinstance(backend, Backend) and backend not in ("auto", *BACKENDS):
        raise InputError(f"objective.backend is {backend!r}; expected one of "
                         f"{', '.join(('auto', *BACKENDS))}")


def next_items(targets: jax.Array) -> Task:
    """Every position of `[B, L]` that has a next item (-1: none) predicts it."""
    flat = targets.reshape(-1)
    return Task(None, jnp.maximum(flat, 0), (flat >= 0).astype(jnp.float32))
