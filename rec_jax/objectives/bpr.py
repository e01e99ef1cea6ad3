"""Bayesian personalised ranking: the label should score above an item that was drawn.

    loss_i = (1 / k) sum over drawn j != y of -log sigmoid(s_iy - s_ij)

It bounds the share of wrongly ordered pairs from above, and looks at differences alone, so a
constant in all scores of a query does not matter (Rendle et al., UAI 2009, with k = 1). Negatives
are drawn from all items but the label; an item that the user took at another time may be one.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rec_jax.objectives import bce
from rec_jax.objectives.base import Catalogue, Task
from rec_jax.objectives.sampled import NEGATIVES

Array = jax.Array


@dataclass(frozen=True)
class Config(bce.Config):
    """Settings of the objective: those of `bce`."""

    kind: str = "bpr"

    def loss(self, queries: Array, task: Task, catalogue: Catalogue) -> Array:
        """f32 `[N]` from queries `[N, d]`."""
        precise, rows = queries.astype(jnp.float32), catalogue.rows(NEGATIVES)
        own = self.scale * jnp.sum(precise * catalogue.rows("labels").astype(jnp.float32), axis=-1)
        if self.shared:
            wrong = bce.sum_over_shared(queries, rows, task.targets, task.constants.ids,
                                        self.scale, own)
        else:
            scores = jnp.einsum("nd,nkd->nk", precise, rows.astype(jnp.float32))
            wrong = jnp.sum(jax.nn.softplus(self.scale * scores - own[:, None]), axis=1)
        return wrong / self.count
