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
from rec_jax.objectives.base import Catalogue, Labels, Needs, Task, WholeCatalogue, check_backend
from rec_jax.ranges import above, at_least, below, check

Array = jax.Array

LABELS = "labels"
"""The name of the rows of a task's labels."""


@dataclass(frozen=True)
class FullSoftmax(WholeCatalogue):
    """What objectives with this loss share; each adds `causal` and `plan`.

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
    def needs(self) -> Needs:
        """The log-normaliser; label smoothing scores the uniform distribution by the mean row."""
        return Needs(normaliser=True, mean_row=self.label_smoothing > 0)

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]`: the softmax's loss with label smoothing and z-loss.

        Of several labels m of a position, with weights w, the loss is sum of w (lse - s_m): that
        of their distribution, up to its entropy. The log-normaliser is computed once.
        """
        several = task.labels is not None
        targets = jnp.full_like(task.targets, -1) if several else task.targets
        loss, lse = catalogue.softmax(queries, targets, scale=self.scale, softcap=self.softcap,
                                      backend=self.backend)
        mass: Array | float = 1.0
        if task.labels is not None:
            loss, mass = self._of_labels(queries, lse, task.labels, catalogue)
        if self.label_smoothing:
            # lse - mean score is the loss against the uniform distribution.
            uniform = lse - self.scale * (queries.astype(jnp.float32) @ catalogue.mean_row())
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * (mass * uniform)
        return loss + self.z_loss * jnp.square(lse) if self.z_loss else loss

    def _of_labels(self, queries: Array, lse: Array, labels: Labels,
                   catalogue: Catalogue) -> tuple[Array, Array]:
        """Sum of w (lse - s) over the labels of each position, and of w; f32 `[N]` each."""
        scores = self.scale * jnp.sum(
            queries[labels.position].astype(jnp.float32)
            * catalogue.rows(LABELS).astype(jnp.float32), axis=-1)
        bias = catalogue.bias(LABELS)
        scores = scores if bias is None else scores + bias
        if self.softcap is not None:
            scores = self.softcap * jnp.tanh(scores / self.softcap)
        terms = jnp.where(labels.weight != 0, labels.weight * (lse[labels.position] - scores), 0.0)
        loss, mass = (jnp.zeros(lse.shape, jnp.float32).at[labels.position].add(values)
                      for values in (terms, labels.weight))
        return loss, mass


def mean_of_rows(rows: Array, num_items: int) -> Array:
    """Mean of the first `num_items` of rows `[V_padded, d]`, f32 `[d]`."""
    return jnp.sum(rows[:num_items].astype(jnp.float32), axis=0) / num_items
