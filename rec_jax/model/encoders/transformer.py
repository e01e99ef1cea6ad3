"""The transformer encoder: SASRec when causal, BERT4Rec's when not.

A pre-norm transformer (Xiong et al., 2020) over item vectors. SASRec (Kang & McAuley, 2018) is
the causal one with learned positions; attention never leaves a segment, so several users can
share one row. Rotary positions (Su et al., 2021), RMS norm and the gated feed-forward layer
(Shazeer, 2020) are what language models have changed since.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from rec_jax.errors import InputError
from rec_jax.kernels import auto
from rec_jax.kernels.native import attention as native_attention
from rec_jax.kernels.native import build as native_build
from rec_jax.model.encoders.attention import (
    Attend,
    attention_mask,
    by_head,
    by_place,
    by_queries,
    head_product,
    masked_attention,
    masked_scores,
)
from rec_jax.model.encoders.base import Inputs, at_places
from rec_jax.model.encoders.layers import (
    MOST_DROPOUT,
    activate,
    dropout,
    feed_forward_layers,
    project,
    rotated,
    split_keys,
)
from rec_jax.ranges import at_least, check


@dataclass(frozen=True)
class Config:
    """Settings of the transformer.

    layers: number of blocks.
    heads: attention heads; must divide the width of the table.
    hidden: width of the feed-forward layer, as a multiple of the table's width.
    dropout: rate on embeddings and on both residual branches, in [0, 1).
    attention_dropout: rate on attention weights; costs B x heads x L x L random draws.
    activation: of the feed-forward layer; swiglu is gated, and two thirds as wide, so that it has
      as many parameters.
    positions: a learned vector added to each place of a history, or rotary: queries and keys
      turn with it, and only distances count.
    norm: layer, or rms, which does not subtract the mean and has no bias.
    query_chunk: a row longer than this attends in pieces of so many queries.
    backend: of attention, where it drops no weights, and of the feed-forward layer.
      native: C++ for CPUs (`rec_jax.kernels`), which needs no pieces; xla: plain JAX; auto: native
      on a CPU with a C++ compiler, where it was measured to be no slower.
    """

    kind: str = "transformer"
    layers: int = 2
    heads: int = 2
    hidden: int = 4
    dropout: float = 0.2
    attention_dropout: float = 0.0
    activation: Literal["gelu", "relu", "silu", "swiglu"] = "gelu"
    positions: Literal["learned", "rotary"] = "learned"
    norm: Literal["layer", "rms"] = "layer"
    query_chunk: int = 512
    backend: Literal["auto", "xla", "native"] = "auto"

    def __post_init__(self) -> None:
        check(self, "", layers=at_least(1, 2**16), heads=at_least(1, 2**16),
              hidden=at_least(1, 2**16), dropout=at_least(0, MOST_DROPOUT),
              attention_dropout=at_least(0, MOST_DROPOUT), query_chunk=at_least(1))

    def native(self, op: str) -> bool:
        """Whether the native library computes an operation of `auto.FOLDS`."""
        return self.backend == "native" or (self.backend == "auto" and auto.takes_native(op))

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
        if self.positions == "rotary" and dim // self.heads % 2:
            raise InputError(
                f"encoder.positions = 'rotary' turns pairs of values, and table.dim / "
                f"encoder.heads is {dim // self.heads}; expected an even number")
        if self.backend == "native" and not native_build.usable():
            why = (native_build.problem() if jax.default_backend() == "cpu"
                   else "the default device is no CPU")
            raise InputError(f"encoder.backend = 'native' cannot be used: {why}; expected 'auto' "
                             "or 'xla'")
        return Transformer(self, dim=dim, length=length, causal=causal, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """Attention and feed-forward, each on a normalised input and added to the stream."""

    def __init__(self, config: Config, dim: int, causal: bool, dtype: jax.typing.DTypeLike,
                 rngs: nnx.Rngs) -> None:
        self.config, self.causal = config, causal
        init = nnx.initializers.normal(0.02)
        # The two layers that write into the stream start smaller, so that its variance does
        # not grow with depth (GPT-2).
        out = nnx.initializers.normal(0.02 / (2 * config.layers) ** 0.5)
        gated = config.activation == "swiglu"
        width = config.hidden * dim * 2 // 3 if gated else config.hidden * dim
        self.norm_attention = _norm(config, dim, dtype, rngs)
        self.qkv = nnx.Linear(dim, 3 * dim, kernel_init=init, dtype=dtype, rngs=rngs)
        self.project = nnx.Linear(dim, dim, kernel_init=out, dtype=dtype, rngs=rngs)
        self.norm_mlp = _norm(config, dim, dtype, rngs)
        self.up = nnx.Linear(dim, width * (1 + gated), kernel_init=init, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(width, dim, kernel_init=out, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, inputs: Inputs, key: jax.Array | None,
                 at: jax.Array | None = None) -> jax.Array:
        """x `[B, L, d]` -> `[B, L, d]`, or `[B, C, d]`: at places `at` `[B, C]` alone."""
        config = self.config
        keys = split_keys(key, 3)
        attended = self._attend(self.norm_attention(x), inputs, keys[0], at)
        x = at_places(x, at) + dropout(project(self.project, attended), config.dropout, keys[1])
        return x + dropout(self._feed_forward(self.norm_mlp(x)), config.dropout, keys[2])

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        activation = self.config.activation
        if self.config.native("feed_forward"):
            return feed_forward_layers(self.up, self.down, x, activation)
        return project(self.down, activate(activation, project(self.up, x)))

    def _attend(self, x: jax.Array, inputs: Inputs, key: jax.Array | None,
                at: jax.Array | None) -> jax.Array:
        config, dim = self.config, x.shape[-1]
        if at is not None and config.positions != "rotary":
            return self._ask(x, inputs, at)
        own, positions = (at_places(each, at) for each in (inputs.segments, inputs.positions))
        places = jnp.broadcast_to(jnp.arange(own.shape[1]), own.shape) if at is None else at
        seen = native_attention.Seen(own, inputs.segments, places)
        key = key if config.attention_dropout > 0.0 else None
        if at is None:
            together = project(self.qkv, x)
            if config.native("attention") and key is None and config.positions != "rotary":
                return native_attention.self_attention(together, seen, config.heads, self.causal)
            parts = jnp.split(together, 3, axis=-1)
        else:
            asked = project(self.qkv, at_places(x, at), slice(dim))
            parts = [asked, *jnp.split(project(self.qkv, x, slice(dim, None)), 2, axis=-1)]
        q, k, v = (part.reshape(*part.shape[:2], config.heads, -1) for part in parts)
        if config.positions == "rotary":
            q, k = rotated(q, positions), rotated(k, inputs.positions)
        return self._mix(q, k, v, seen, key, at).reshape(*own.shape, dim)

    def _ask(self, x: jax.Array, inputs: Inputs, at: jax.Array) -> jax.Array:
        """Attention of the few places `at` `[B, C]`, which makes no keys and no values.

        A head's q.(x K) is (q K^T).x and its sum of p (x V) is (sum of p x) V, so that its query,
        turned by K^T, can attend the normalised stream itself. The bias of keys adds as much to
        every score of a query, and changes no weight.
        """
        dim, heads = x.shape[-1], self.config.heads
        assert self.qkv.bias is not None
        _, keys, values = jnp.moveaxis(
            self.qkv.kernel[...].astype(x.dtype).reshape(dim, 3, heads, -1), 1, 0)  # [d, h, c]
        q = project(self.qkv, at_places(x, at), slice(dim)).reshape(*at.shape, heads, -1)
        # Scores are to be scaled by c^-1/2, and are by d^-1/2.
        turned = heads**0.5 * jnp.einsum("bqhc,dhc->bqhd", q, keys,
                                         preferred_element_type=jnp.float32)
        places = jnp.repeat(at, heads, axis=1)  # [B, C * h], every head a query of its own
        seen = native_attention.Seen(at_places(inputs.segments, places), inputs.segments, places)
        stream = x[:, :, None]
        mixed = self._mix(turned.astype(x.dtype).reshape(*places.shape, 1, dim), stream, stream,
                          seen, None, places)
        out = jnp.einsum("bqhd,dhc->bqhc", mixed.reshape(*at.shape, heads, dim), values,
                         preferred_element_type=jnp.float32)
        return (out.reshape(*at.shape, dim) + self.qkv.bias[...][2 * dim:]).astype(x.dtype)

    def _mix(self, q: jax.Array, k: jax.Array, v: jax.Array, seen: native_attention.Seen,
             key: jax.Array | None, at: jax.Array | None) -> jax.Array:
        """Attention of q `[B, C, h, c]` over k, v `[B, L, h, c]`; a key drops weights."""
        if self.config.native("attention") and key is None:
            return native_attention.segment_attention(q, k, v, seen, self.causal)
        return by_queries(self._attend_piece(k, v, seen.segments, key), (q, seen.own),
                          self.config.query_chunk, length=k.shape[1], causal=self.causal, at=at)

    def _attend_piece(self, k: jax.Array, v: jax.Array, row: jax.Array, key: jax.Array | None
                      ) -> Attend:
        """What `by_queries` calls for some queries of the rows, whose segments are `[B, L]`."""

        def attend(queries: tuple[jax.Array, jax.Array], places: jax.Array,
                   seen: int) -> jax.Array:
            q, own = queries  # [B, C, h, d/h], [B, C]
            keys, values, segments = (x[:, :seen] for x in (k, v, row))
            mask = attention_mask(own, segments, places, causal=self.causal)
            if key is None:
                return masked_attention(q, keys, values, mask)
            weights = jax.nn.softmax(masked_scores(by_head(q), by_head(keys), mask))
            weights = dropout(weights, self.config.attention_dropout,
                              jax.random.fold_in(key, places[0]))
            mixed = head_product(weights.astype(v.dtype), by_head(values), 2, 1)
            return by_place(mixed, self.config.heads).astype(v.dtype)

        return attend


class Transformer(nnx.Module):
    """`config.layers` blocks over item vectors and their positions."""

    def __init__(self, config: Config, *, dim: int, length: int, causal: bool,
                 dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = dtype
        self.position = None if config.positions == "rotary" else nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (length, dim)))
        self.blocks = nnx.List([Block(config, dim, causal, dtype, rngs)
                                for _ in range(config.layers)])
        self.norm = _norm(config, dim, dtype, rngs)

    def __call__(self, vectors: jax.Array, inputs: Inputs,
                 key: jax.Array | None = None, at: jax.Array | None = None) -> jax.Array:
        """vectors `[B, L, d]` -> queries `[B, L, d]` in the compute dtype; see `Encoder`."""
        keys = split_keys(key, len(self.blocks) + 1)
        x = vectors
        if self.position is not None:
            x = x + self.position[...][inputs.positions]
        x = dropout(x.astype(self.dtype), self.config.dropout, keys[0])
        for number, block in enumerate(self.blocks, 1):
            x = block(x, inputs, keys[number], at if number == len(self.blocks) else None)
        return self.norm(x)


def _norm(config: Config, dim: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
    made = nnx.LayerNorm if config.norm == "layer" else nnx.RMSNorm
    return made(dim, dtype=dtype, rngs=rngs)
