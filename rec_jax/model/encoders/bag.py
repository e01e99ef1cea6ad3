"""A bag of items: a history's query is the mean of its item vectors, in whatever order they came.

    q_l = (1 / n^power) (v_1 + .. + v_n) W,     n items up to place l of its history

power = 1 is the mean, 0 the sum, and between them lies the normalisation of FISM (Kabbur et al.,
KDD 2013). With W = I and tied tables it is a low-rank item-to-item model as ELSA's (Vancura et
al., RecSys 2022), which a loss over next items keeps from predicting an item by itself; with
untied tables it is FISM. There are no users: whoever has a history has a query.

Sums are made by adding alone (a scan over places), so an item of another history in the same row
is in none of them, not even as a rounding error. An encoder that may look ahead sums a whole
history.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from rec_jax.model.encoders.base import Inputs, at_places
from rec_jax.model.encoders.layers import MOST_DROPOUT, constant_last, dropout
from rec_jax.ranges import at_least, check


@dataclass(frozen=True)
class Config:
    """Settings of the encoder.

    power: of the number of items, by which their sum is divided.
    linear: whether there is a matrix W, which begins as the identity.
    dropout: on the item vectors.
    item_bias: the last column of a query is 1, so that the last column of an item's row is its
      bias.
    """

    kind: str = "bag"
    power: float = 1.0
    linear: bool = False
    dropout: float = 0.0
    item_bias: bool = False

    def __post_init__(self) -> None:
        check(self, "encoder.", power=at_least(0, 1), dropout=at_least(0, MOST_DROPOUT))

    @property
    def carries_begin(self) -> bool:
        """Places in front of a history are read as its items are."""
        return True

    def build(self, *, dim: int, length: int, causal: bool, dtype: jax.typing.DTypeLike,
              rngs: nnx.Rngs) -> nnx.Module:
        """A module of width `dim`."""
        del length, dtype, rngs
        return Bag(self, dim, causal)


class Bag(nnx.Module):
    """See the formula of the file."""

    def __init__(self, config: Config, dim: int, causal: bool) -> None:
        self.config, self.causal = config, causal
        if config.linear:
            self.kernel = nnx.Param(jnp.eye(dim))

    def __call__(self, vectors: jax.Array, inputs: Inputs, key: jax.Array | None = None,
                 at: jax.Array | None = None) -> jax.Array:
        """Item vectors `[B, L, d]` -> queries `[B, L, d]`, f32, or those at places `[B, C, d]`."""
        config = self.config
        # An average of many items needs more digits than an item.
        items = dropout(vectors.astype(jnp.float32), config.dropout, key)
        added = running_sums(items, inputs.segments)
        count = inputs.positions + 1
        if not self.causal:
            after = running_sums(items, inputs.segments, reverse=True)
            added = added + after - items
            one = jnp.ones((*items.shape[:2], 1))
            count = count + running_sums(one, inputs.segments, reverse=True)[..., 0] - 1
        added, count = at_places(added, at), at_places(count, at)
        queries = added * count[..., None].astype(jnp.float32) ** -config.power
        if config.linear:
            queries = jnp.matmul(queries, self.kernel[...], precision=jax.lax.Precision.HIGHEST)
        return constant_last(queries) if config.item_bias else queries


def running_sums(values: jax.Array, segments: jax.Array, reverse: bool = False) -> jax.Array:
    """Sums f32 `[B, L, d]` of `values` from where a place's segment begins up to the place.

    segments: int `[B, L]`; reverse: from where it ends.
    """
    def join(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
             ) -> tuple[jax.Array, jax.Array]:
        (first, sums), (starts, more) = left, right
        return first | starts, jnp.where(starts[..., None], more, sums + more)

    towards = 1 if reverse else -1
    neighbour = jnp.roll(segments, -towards, axis=1)
    starts = (segments != neighbour).at[:, -1 if reverse else 0].set(True)
    return jax.lax.associative_scan(join, (starts, values), reverse=reverse, axis=1)[1]
