"""An encoder in one file: the recent items of a history, each half as much as the one after it.

    q_l = W (v_l + v_{l-1} / 2 + v_{l-2} / 4 + ...)     within one history

It has one parameter, a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rec_jax.model.encoders import Inputs


@dataclass(frozen=True)
class Config:
    """Settings of the encoder.

    keep: how much of an item is left one place later.
    """

    kind: str = "weighted_history"
    keep: float = 0.5

    def build(self, *, dim: int, rngs: nnx.Rngs, **_: Any) -> nnx.Module:
        """A module of width `dim`."""
        return WeightedHistory(dim, self.keep, rngs)


class WeightedHistory(nnx.Module):
    """See the formula of the file."""

    def __init__(self, dim: int, keep: float, rngs: nnx.Rngs) -> None:
        self.keep = keep
        self.kernel = nnx.Param(jnp.eye(dim) + 0.01 * jax.random.normal(rngs.params(), (dim, dim)))

    def __call__(self, vectors: jax.Array, inputs: Inputs, key: jax.Array | None = None
                 ) -> jax.Array:
        """Item vectors `[B, L, d]` -> queries `[B, L, d]`."""
        del key
        place = jnp.arange(vectors.shape[1])
        age = place[:, None] - place[None, :]
        seen = (age >= 0) & (inputs.segments[:, :, None] == inputs.segments[:, None, :])
        share = jnp.where(seen, self.keep ** jnp.maximum(age, 0), 0.0)
        return (share @ vectors) @ self.kernel[...]
