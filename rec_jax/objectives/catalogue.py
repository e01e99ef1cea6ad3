"""The exact softmax over the whole catalogue, whatever is predicted where.

    loss_i = lse_i - s_i(y_i) + z * lse_i^2,   lse_i = log sum_j exp(s_ij)

with scores `s = scale * q . w`. Label smoothing e mixes in the uniform distribution:
`loss_i += e * (s_i(y_i) - q_i . mean(w))`, which needs only the mean row. The z-loss keeps
log-normalisers near 0 (ST-MoE, Zoph et al., 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rec_jax.errors import InputError
from rec_jax.kernels import softmax_loss
from rec_jax.objectives.base import Task, check_backend
from rec_jax.ranges import above, at_least, below, check


@dataclass(frozen=True)
class CatalogueSoftmax:
    """What objectives with this loss share; each adds `causal` and `task`.

    z_loss: weight of lse^2.
    label_smoothing: share of the uniform distribution in the target, in [0, 1).
    scale: factor on every score (an inverse temperature).
    softcap: scores become cap * tanh(score / cap); none by default.
    backend: of the kernel: auto, or one of `rec_jax.kernels.dispatch.BACKENDS`.
    """

    kind: str
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    scale: float = 1.0
    softcap: float | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        check(self, "", z_loss=at_least(0, 1e6), label_smoothing=below(0, 1),
              scale=above(0, 1e6), softcap=above(0))
        check_backend(self.backend)
        if self.label_smoothing and self.softcap is not None:
            raise InputError("label_smoothing and softcap exclude each other: the smoothed "
                             "loss needs scores that are linear in the rows")

    @property
    def num_negatives(self) -> None:
        """The whole catalogue is scored."""
        return None

    @property
    def needs_mean_row(self) -> bool:
        """Label smoothing scores the uniform distribution by the mean row."""
        return self.label_smoothing > 0

    def combine(self, loss: jax.Array, lse: jax.Array, queries: jax.Array,
                mean_row: jax.Array | None) -> jax.Array:
        """f32 `[N]`: label smoothing and z-loss over the softmax's loss and lse."""
        if self.label_smoothing:
            assert mean_row is not None
            # lse - mean score is the loss against the uniform distribution.
            uniform = lse - self.scale * (queries.astype(jnp.float32) @ mean_row)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform
        return loss + self.z_loss * jnp.square(lse) if self.z_loss else loss

    def loss(self, queries: jax.Array, rows: jax.Array, task: Task, *,
             num_items: int) -> jax.Array:
        """f32 `[N]` from queries `[N, d]` and a whole table on one device, `[V_padded, d]`."""
        loss, lse = softmax_loss(
            queries, rows, task.targets, logit_scale=self.scale, softcap=self.softcap,
            num_items=num_items, backend=self.backend)
        mean = mean_of_rows(rows, num_items) if self.needs_mean_row else None
        return self.combine(loss, lse, queries, mean)


def mean_of_rows(rows: jax.Array, num_items: int) -> jax.Array:
    """Mean of the first `num_items` of rows `[V_padded, d]`, f32 `[d]`."""
    return jnp.sum(rows[:num_items].astype(jnp.float32), axis=0) / num_items
