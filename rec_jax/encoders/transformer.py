"""The transformer encoder: SASRec when causal, BERT4Rec's when not.

A pre-norm transformer (Xiong et al., 2020) over item vectors with learned positions. SASRec
(Kang & McAuley, 2018) is the causal one; attention never leaves a segment, so several users
can share one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from rec_jax.encoders.base import Inputs
from rec_jax.encoders.layers import dropout, segment_mask, split_keys
from rec_jax.errors import InputError


@dataclass(frozen=True)
class Config:
    """Settings of the transformer.

    layers: number of blocks.
    heads: attention heads; must divide the width of the table.
    hidden: width of the feed-forward layer, as a multiple of the table's width.
    dropout: rate on embeddings and on both residual branches, in [0, 1).
    attention_dropout: rate on attention weights; costs B x heads x L x L random draws.
    activation: of the feed-forward layer.
    """

    kind: str = "transformer"
    layers: int = 2
    heads: int = 2
    hidden: int = 4
    dropout: float = 0.2
    attention_dropout: float = 0.0
    activation: Literal["gelu", "relu", "silu"] = "gelu"

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 <= rate < 1")

    def build(self, *, dim: int, length: int, causal: bool, dtype: jax.typing.DTypeLike,
              rngs: nnx.Rngs) -> nnx.Module:
        """See `EncoderConfig.build`."""
        if dim % self.heads:
            raise InputError(
                f"encoder.heads = {self.heads} does not divide table.dim = {dim}; "
                f"expected a divisor")
        return Transformer(self, dim=dim, length=length, causal=causal, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """Attention and feed-forward, each on a normalised input and added to the stream."""

    def __init__(self, config: Config, dim: int, dtype: jax.typing.DTypeLike,
                 rngs: nnx.Rngs) -> None:
        self.config = config
        init = nnx.initializers.normal(0.02)
        # The two layers that write into the stream start smaller, so that its variance does
        # not grow with depth (GPT-2).
        out = nnx.initializers.normal(0.02 / (2 * config.layers) ** 0.5)
        self.norm_attention = nnx.LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.qkv = nnx.Linear(dim, 3 * dim, kernel_init=init, dtype=dtype, rngs=rngs)
        self.project = nnx.Linear(dim, dim, kernel_init=out, dtype=dtype, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(dim, config.hidden * dim, kernel_init=init, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(config.hidden * dim, dim, kernel_init=out, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
        """x `[B, L, d]`, mask bool `[B, 1, L, L]` -> `[B, L, d]`."""
        config = self.config
        keys = split_keys(key, 3)
        attended = self._attend(self.norm_attention(x), mask, keys[0])
        x = x + dropout(self.project(attended), config.dropout, keys[1])
        hidden = getattr(jax.nn, config.activation)(self.up(self.norm_mlp(x)))
        return x + dropout(self.down(hidden), config.dropout, keys[2])

    def _attend(self, x: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
        batch, length, dim = x.shape
        heads = self.config.heads
        qkv = self.qkv(x).reshape(batch, length, 3, heads, dim // heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, L, h, d/h]
        if key is None or self.config.attention_dropout == 0.0:
            mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
        else:
            logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32)
            logits = jnp.where(mask, logits * (dim // heads) ** -0.5, -jnp.inf)
            weights = dropout(jax.nn.softmax(logits), self.config.attention_dropout, key)
            mixed = jnp.einsum("bhqk,bkhc->bqhc", weights.astype(v.dtype), v)
        return mixed.reshape(batch, length, dim)


class Transformer(nnx.Module):
    """`config.layers` blocks over item vectors plus learned positions."""

    def __init__(self, config: Config, *, dim: int, length: int, causal: bool,
                 dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.config = config
        self.causal = causal
        self.dtype = dtype
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (length, dim)))
        self.blocks = nnx.List([Block(config, dim, dtype, rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(dim, dtype=dtype, rngs=rngs)

    def __call__(self, vectors: jax.Array, inputs: Inputs,
                 key: jax.Array | None = None) -> jax.Array:
        """vectors `[B, L, d]` -> queries `[B, L, d]` in the compute dtype."""
        keys = split_keys(key, len(self.blocks) + 1)
        x = vectors + self.position[...][inputs.positions]
        x = dropout(x.astype(self.dtype), self.config.dropout, keys[0])
        mask = segment_mask(inputs.segments, causal=self.causal)
        for block, block_key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, mask, block_key)
        return self.norm(x)
