"""An encoder: a user's query is the user's own vector, as in matrix factorisation.

With `next_item` it is softmax(U^T V) over the whole catalogue. `uses_users` gives the run a table
of users, a row each, which trains as the table of items does; `[users]` in the config has its
settings. Histories are not read, so the encoder does not take the place that is asked for (`at`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from rec_jax.model.encoders import Inputs


@dataclass(frozen=True)
class Config:
    """Settings of the encoder: none."""

    kind: str = "user_vectors"

    @property
    def uses_users(self) -> bool:
        """It reads nothing else."""
        return True

    def build(self, **_: Any) -> nnx.Module:
        """The module, without parameters."""
        return UserVectors()


class UserVectors(nnx.Module):
    """`queries = users`."""

    def __call__(self, vectors: jax.Array, inputs: Inputs, key: jax.Array | None = None
                 ) -> jax.Array:
        """`[B, L, d]`, the vector of each place's user."""
        del vectors, key
        assert inputs.users is not None
        return inputs.users
