"""SVD++: a user's row, and what the user took, whatever it was rated (Koren, KDD 2008).

    q_u = p_u + (1 / n^power) (v_1 + .. + v_n) W,     all n items of a history

The sum is `bag`'s, of the whole history at each of its places, so every item of a user is a label,
as with `user`; the item of a place is a part of its own query, as it is in the paper. With untied
tables, as there, the v are rows of their own; with tied ones the items' vectors, content included,
which a matrix W may turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from rec_jax.errors import InputError
from rec_jax.model.encoders import bag, user
from rec_jax.model.encoders.base import Inputs, at_places
from rec_jax.model.encoders.layers import constant_last, dropout
from rec_jax.ranges import at_least, check


@dataclass(frozen=True)
class Config(user.Config):
    """Settings of the encoder: those of `user`, whose dropout is on the query, and

    power: of the number of items, by which their sum is divided.
    linear: whether there is a matrix W, which begins as the identity.
    """

    kind: str = "svdpp"
    power: float = 0.5
    linear: bool = False

    @property
    def reads_history(self) -> bool:
        """It reads all of it at each place, so every item is a label."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "encoder.", power=at_least(0, 1))
        if self.unit:
            raise InputError("encoder.unit: a query of 'svdpp' is a sum, of any norm; expected "
                             "encoder.unit = false, or encoder.kind = 'user' or 'lightgcn'")

    def build(self, **given: Any) -> nnx.Module:
        """The module, of width `dim`."""
        return SvdPlusPlus(self, given["dim"])


class SvdPlusPlus(nnx.Module):
    """See the formula of the file."""

    def __init__(self, config: Config, dim: int) -> None:
        self.config = config
        self.taken = bag.Bag(bag.Config(power=config.power, linear=config.linear), dim,
                             causal=False)

    def __call__(self, vectors: jax.Array, inputs: Inputs, key: jax.Array | None = None,
                 at: jax.Array | None = None) -> jax.Array:
        """`[B, L, d]`, the query of each place's user, or `[B, C, d]`."""
        assert inputs.users is not None
        queries = at_places(inputs.users, at) + self.taken(vectors, inputs, None, at)
        queries = dropout(queries, self.config.dropout, key)
        return constant_last(queries) if self.config.item_bias else queries
