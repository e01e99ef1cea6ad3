"""Matrix factorisation: a user's query is the user's own row, and no history is read.

    q_u = p_u,     score of item j = p_u . w_j

A run with this encoder has a table of users beside that of the items ([users] in its config), which
trains as that one does. With `next_item` it is softmax(U^T V) over the whole catalogue, with `bpr`
the pairwise model of Rendle et al. (2009), with `rating` the one of Koren et al. (2009). As no
history is read, every item of a user is a label, the first one too. Who is not in the dataset
has no row, and no recommendations.

With `unit` both rows are divided by their norms, so that scores are cosines. A softmax over cosines
needs `objective.scale`, the inverse of its temperature (Wu et al., "On the effectiveness of sampled
softmax loss for item recommendation", TOIS 2024); that this is over all items is what the engine
adds. Popular items then have no longer rows than others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from rec_jax.errors import InputError
from rec_jax.model.encoders.base import Inputs, at_places
from rec_jax.model.encoders.layers import MOST_DROPOUT, constant_last, dropout
from rec_jax.ranges import at_least, check


@dataclass(frozen=True)
class Config:
    """Settings of the encoder.

    dropout: on the user's row, or vector.
    unit: vectors of users and items have norm 1.
    item_bias: the last column of a query is 1, so that the last column of an item's row is its
      bias.
    """

    kind: str = "user"
    dropout: float = 0.0
    unit: bool = False
    item_bias: bool = False

    def __post_init__(self) -> None:
        check(self, "encoder.", dropout=at_least(0, MOST_DROPOUT))
        if self.unit and self.item_bias:
            raise InputError("encoder.unit: vectors of norm 1 have no column for a bias; expected "
                             "encoder.item_bias = false")

    @property
    def uses_users(self) -> bool:
        """It reads nothing else."""
        return True

    @property
    def reads_history(self) -> bool:
        """It does not, so an item that it predicts may be among the inputs."""
        return False

    def build(self, **_: Any) -> nnx.Module:
        """The module, without parameters."""
        return User(self)


class User(nnx.Module):
    """See the formula of the file."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, vectors: jax.Array, inputs: Inputs, key: jax.Array | None = None,
                 at: jax.Array | None = None) -> jax.Array:
        """`[B, L, d]`, the row of each place's user, or `[B, C, d]`."""
        del vectors
        assert inputs.users is not None
        queries = dropout(at_places(inputs.users, at), self.config.dropout, key)
        return constant_last(queries) if self.config.item_bias else queries
