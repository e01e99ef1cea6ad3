"""Row optimizers: one row's step depends on that row alone, so a tile of rows can take it.

Each is a pair of pure functions, `init(shape [V, d]) -> state` and
`update(rows f32 [T, d], grads f32 [T, d], state, hyper) -> (rows, state)`, where the leaves of
`state` are slices `[T, ...]`. With g the gradient of a row after clipping, c the number of
steps the row has taken, this one included, and r the rate:

    sgd       w -= r g
    adagrad   a += mean(g^2);                       w -= r g / (sqrt(a) + eps)
    adam      m, v = moments of g, g^2;             w -= r m^ / (sqrt(v^) + eps)
    row_adam  m of g, v of mean(g^2), one a row;    w -= r m^ / (sqrt(v^) + eps)

m^ and v^ are corrected by the row's own count c. Where every row takes every step (dense,
streamed) this is the optax optimizer of the same name; where a step touches some rows (sparse),
each row runs the optimizer over the steps that touched it, and an untouched row keeps its bits.

Row-wise Adagrad is that of FBGEMM's embedding tables; row-wise Adam keeps one second moment a
row, a d-th of Adam's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rec_jax.kernels.primitives import RowUpdate
from rec_jax.ranges import above, at_least, below, check

Array = jax.Array


@dataclass(frozen=True)
class RowOptimizerConfig:
    """Settings of a table's optimizer, where the table has its own (sparse, streamed).

    kind: sgd, adagrad (row-wise; 4 bytes a row), adam (8 d + 4 bytes a row) or row_adam
      (4 d + 8 bytes a row).
    rate: learning rate; none: that of the dense optimizer, with its schedule.
    b1, b2: decay of the moments (adam, row_adam).
    eps: added to the root that divides (adagrad, adam, row_adam).
    weight_decay: decoupled, `w -= rate * weight_decay * w`, of the rows that a step updates.
    clip: largest norm of one row's gradient; none by default.
    """

    kind: Literal["sgd", "adagrad", "adam", "row_adam"] = "row_adam"
    rate: float | None = None
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        # Less is 0 in f32, and a gradient that was always 0 would be divided by 0.
        least = 1e-30 if self.kind in ("adam", "row_adam") else 0
        check(self, "table.optimizer.", rate=above(0, 1e6), b1=below(0, 1), b2=below(0, 1),
              eps=at_least(least, 1e6), weight_decay=at_least(0, 1e6), clip=above(0))


class Hyper(NamedTuple):
    """What changes from step to step; scalars. rate: f32, learning rate of this step."""

    rate: Array


class RowOptimizer(NamedTuple):
    """`init(shape) -> state`, a pytree of arrays `[V, ...]` that start at zero, and `update`."""

    init: Callable[[tuple[int, int]], Any]
    update: RowUpdate


class AdamState(NamedTuple):
    """steps int32 `[V]`, taken by each row; mu f32 `[V, d]`; nu f32 `[V, d]`, or `[V]` if one
    a row."""

    steps: Array
    mu: Array
    nu: Array


Direction = Callable[[Array, Any, RowOptimizerConfig], tuple[Array, Any]]
"""`direction(grads [T, d], state, config) -> (step [T, d] to subtract at rate 1, state)`."""


@functools.cache
def row_optimizer(config: RowOptimizerConfig) -> RowOptimizer:
    """The optimizer of `config`; its `update` takes a `Hyper`."""
    init, direction = ROW_OPTIMIZERS[config.kind]

    def update(rows: Array, grads: Array, state: Any, hyper: Hyper) -> tuple[Array, Any]:
        if config.clip is not None:
            square = jnp.sum(jnp.square(grads), axis=-1, keepdims=True)
            # Never a division by 0: a norm below the limit leaves the factor at 1.
            grads = grads * (config.clip / jnp.sqrt(jnp.maximum(square, config.clip ** 2)))
        step, state = direction(grads, state, config)
        if config.weight_decay:
            step = step + config.weight_decay * rows
        return rows - hyper.rate * step, state

    return RowOptimizer(init, update)


def _sgd(grads: Array, state: Any, config: RowOptimizerConfig) -> tuple[Array, Any]:
    return grads, state


def _adagrad(grads: Array, state: Array, config: RowOptimizerConfig) -> tuple[Array, Array]:
    state = state + jnp.mean(jnp.square(grads), axis=-1)
    root = jnp.sqrt(state)[:, None] + config.eps
    # A row whose gradients were all 0 has nothing to divide by, and nothing to move.
    return jnp.where(root > 0, grads / jnp.where(root > 0, root, 1.0), 0.0), state


def _adam(grads: Array, state: AdamState,
          config: RowOptimizerConfig) -> tuple[Array, AdamState]:
    return _moments(grads, jnp.square(grads), state, config)


def _row_adam(grads: Array, state: AdamState,
              config: RowOptimizerConfig) -> tuple[Array, AdamState]:
    return _moments(grads, jnp.mean(jnp.square(grads), axis=-1), state, config)


def _moments(grads: Array, squares: Array, state: AdamState,
             config: RowOptimizerConfig) -> tuple[Array, AdamState]:
    steps = state.steps + 1
    mu = config.b1 * state.mu + (1 - config.b1) * grads
    nu = config.b2 * state.nu + (1 - config.b2) * squares
    count = steps.astype(jnp.float32)[:, None]
    mean = mu / (1 - config.b1 ** count)
    square = (nu if nu.ndim == 2 else nu[:, None]) / (1 - config.b2 ** count)
    return mean / (jnp.sqrt(square) + config.eps), AdamState(steps, mu, nu)


def _no_state(shape: tuple[int, int]) -> Any:
    return ()


def _row_state(shape: tuple[int, int]) -> Array:
    return jnp.zeros(shape[0], jnp.float32)


def _adam_state(shape: tuple[int, int]) -> AdamState:
    return AdamState(jnp.zeros(shape[0], jnp.int32), jnp.zeros(shape, jnp.float32),
                     jnp.zeros(shape, jnp.float32))


def _row_adam_state(shape: tuple[int, int]) -> AdamState:
    return AdamState(jnp.zeros(shape[0], jnp.int32), jnp.zeros(shape, jnp.float32),
                     jnp.zeros(shape[0], jnp.float32))


ROW_OPTIMIZERS: dict[str, tuple[Callable[[tuple[int, int]], Any], Direction]] = {
    "sgd": (_no_state, _sgd),
    "adagrad": (_row_state, _adagrad),
    "adam": (_adam_state, _adam),
    "row_adam": (_row_adam_state, _row_adam),
}
