"""HSTU: attention without a softmax, gated, and without a feed-forward layer.

    U, V, Q, K = SiLU(Linear(norm(X)))
    A = SiLU(Q K^T + bias) / n
    Y = X + Linear(norm(A V) * U)

Zhai et al., "Actions speak louder than words" (2024). The bias is learned for each distance in
places and, where asked, for each (logarithmic) distance in time. Weights do not sum to 1, so a
query also says how many of its items match, not only which.

n is the row's length L, not the number of items that a query sees: a constant, so that nobody's
queries depend on who shares the row, and the sum keeps its count.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from rec_jax.errors import InputError
from rec_jax.model.encoders.attention import (
    attention_mask,
    by_head,
    by_place,
    by_queries,
    head_product,
)
from rec_jax.model.encoders.base import Inputs, at_places
from rec_jax.model.encoders.layers import MOST_DROPOUT, dropout, project, split_keys
from rec_jax.model.encoders.relative import TIME_BUCKETS, look_up, place_bias, time_bucket
from rec_jax.ranges import at_least, check

Array = jax.Array


@dataclass(frozen=True)
class Config:
    """Settings of HSTU.

    layers: number of blocks.
    heads: attention heads; must divide the width of the table.
    dropout: rate on embeddings and on what each block adds, in [0, 1).
    time_bias: also weigh items by the time that lies between them; needs a dataset with times.
    query_chunk: a row longer than this attends in pieces of so many queries.
    """

    kind: str = "hstu"
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    time_bias: bool = False
    query_chunk: int = 512

    def __post_init__(self) -> None:
        check(self, "", layers=at_least(1, 2**16), heads=at_least(1, 2**16),
              dropout=at_least(0, MOST_DROPOUT), query_chunk=at_least(1))

    @property
    def uses_times(self) -> bool:
        """Whether `Inputs.times` is read."""
        return self.time_bias

    @property
    def carries_begin(self) -> bool:
        """Places in front of a history are read as its items are."""
        return True

    def build(self, *, dim: int, length: int, causal: bool, dtype: jax.typing.DTypeLike,
              rngs: nnx.Rngs) -> nnx.Module:
        """See `EncoderConfig.build`."""
        if dim % self.heads:
            raise InputError(
                f"encoder.heads = {self.heads} does not divide table.dim = {dim}; "
                f"expected a divisor")
        return HSTU(self, dim=dim, length=length, causal=causal, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """One layer. Its tables of biases are its own; that of time is shared by the heads, since
    it is looked up B x L x L times."""

    def __init__(self, config: Config, dim: int, length: int, causal: bool,
                 dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.config, self.length, self.causal = config, length, causal
        # Wide enough that sums of products of SiLUs are not lost below the norm's epsilon.
        init = nnx.initializers.normal(dim**-0.5)
        out = nnx.initializers.normal(0.02 / config.layers**0.5)
        self.norm = nnx.LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.uvqk = nnx.Linear(dim, 4 * dim, kernel_init=init, dtype=dtype, rngs=rngs)
        self.norm_mixed = nnx.LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.project = nnx.Linear(dim, dim, kernel_init=out, dtype=dtype, rngs=rngs)
        places = length if causal else 2 * length - 1
        self.place = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.heads, places)))
        self.time = None if not config.time_bias else nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (TIME_BUCKETS,)))

    def __call__(self, x: Array, inputs: Inputs, key: Array | None,
                 at: Array | None = None) -> Array:
        """x `[B, L, d]` -> `[B, L, d]`, or `[B, C, d]`: at places `at` `[B, C]` alone."""
        u, v, q, k = jnp.split(jax.nn.silu(project(self.uvqk, self.norm(x))), 4, axis=-1)
        u, q = at_places(u, at), at_places(q, at)
        gated = self.norm_mixed(self._attend(q, k, v, inputs, at)) * u
        return at_places(x, at) + project(self.project, dropout(gated, self.config.dropout, key))

    def _attend(self, q: Array, k: Array, v: Array, inputs: Inputs, at: Array | None) -> Array:
        (batch, length, dim), heads = k.shape, self.config.heads
        q, k, v = (part.reshape(*part.shape[:2], heads, -1) for part in (q, k, v))
        segments, place = inputs.segments, self.place[...]
        time = None if self.time is None else self.time[...]

        def attend(queries: tuple[Array, Array, Array | None], places: Array,
                   seen: int) -> Array:
            q, own, when = queries  # [B, C, h, d / h], [B, C], [B, C]
            count = q.shape[1]
            scores = head_product(by_head(q), by_head(k[:, :seen]), 2, 2)
            scores = scores.reshape(batch, heads, count, seen)
            if places.ndim == 1:  # side by side
                bias = place_bias(place, places[0], count, self.length)
            else:
                bias = jax.vmap(jax.vmap(lambda own: place_bias(place, own, 1, self.length)[:, 0],
                                         out_axes=1))(places)  # [B, h, C, L]
            scores += bias[..., :seen]
            if time is not None and when is not None and inputs.times is not None:
                between = jnp.abs(when[:, :, None] - inputs.times[:, None, :seen])
                scores += look_up(time, time_bucket(between))[:, None]
            mask = attention_mask(own, segments[:, :seen], places, causal=self.causal)
            weights = jnp.where(mask, jax.nn.silu(scores), 0.0) / self.length
            weights = weights.astype(v.dtype).reshape(-1, count, seen)
            mixed = head_product(weights, by_head(v[:, :seen]), 2, 1)
            return by_place(mixed, heads).astype(v.dtype)

        times = None if inputs.times is None else at_places(inputs.times, at)
        asked = (q, at_places(segments, at), times)
        found = by_queries(attend, asked, self.config.query_chunk, length=length,
                           causal=self.causal, at=at)
        return found.reshape(batch, -1, dim)


class HSTU(nnx.Module):
    """`config.layers` blocks over item vectors; places enter as biases alone."""

    def __init__(self, config: Config, *, dim: int, length: int, causal: bool,
                 dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = dtype
        self.blocks = nnx.List([Block(config, dim, length, causal, dtype, rngs)
                                for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(dim, dtype=dtype, rngs=rngs)

    def __call__(self, vectors: Array, inputs: Inputs, key: Array | None = None,
                 at: Array | None = None) -> Array:
        """vectors `[B, L, d]` -> queries `[B, L, d]` in the compute dtype; see `Encoder`.

        Raises:
          InputError: there is a bias by time, and `inputs` have no times.
        """
        if self.config.time_bias and inputs.times is None:
            raise InputError("encoder.time_bias needs the times of the items; there are none")
        keys = split_keys(key, len(self.blocks) + 1)
        x = dropout(vectors.astype(self.dtype), self.config.dropout, keys[0])
        for number, block in enumerate(self.blocks, 1):
            x = block(x, inputs, keys[number], at if number == len(self.blocks) else None)
        return self.norm(x)
