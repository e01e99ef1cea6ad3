"""BERT and its relatives (Devlin et al., 2019; RoBERTa, MiniLM): a bidirectional encoder.

A token's vector is the sum of three rows, of its word w, its place p and type 0, normalised. Then
every block, with LN the layer norm, adds and normalises twice (post-norm):

    x = LN(x + A(x) W_o + b_o),    x = LN(x + f(x W_1 + b_1) W_2 + b_2)

A is attention of all tokens of a text to all of them. RoBERTa and its relatives differ in one
thing alone: their first token stands at the place behind that of padding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec_jax.text.architecture import Architecture
from rec_jax.text.layers import Params, dense, feed_forward, layer_norm, self_attention
from rec_jax.text.weights import Source

PREFIXES = ("", "bert.", "roberta.", "model.", "0.auto_model.")


def sources(about: Architecture) -> dict[str, Source]:
    """Parameters by path, and the tensors of a file that they are made of."""
    width, hidden = about.width, about.hidden
    found = {name: Source((f"embeddings.{tensor}_embeddings.weight",), (rows, width))
             for name, tensor, rows in (("words", "word", about.tokens),
                                        ("positions", "position", about.positions),
                                        ("types", "token_type", about.types))}
    found |= _norm("norm", "embeddings.LayerNorm", width)
    for number in range(about.layers):
        path, layer = f"blocks/{number}", f"encoder.layer.{number}"
        attention = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
        found |= _dense(f"{path}/qkv", attention, width, width)
        found |= _dense(f"{path}/project", [f"{layer}.attention.output.dense"], width, width)
        found |= _norm(f"{path}/norm_attention", f"{layer}.attention.output.LayerNorm", width)
        found |= _dense(f"{path}/up", [f"{layer}.intermediate.dense"], width, hidden)
        found |= _dense(f"{path}/down", [f"{layer}.output.dense"], hidden, width)
        found |= _norm(f"{path}/norm_mlp", f"{layer}.output.LayerNorm", width)
    return found


def _dense(path: str, tensors: list[str], width: int, out: int) -> dict[str, Source]:
    return {f"{path}/kernel": Source(tuple(f"{name}.weight" for name in tensors), (out, width),
                                     transposed=True),
            f"{path}/bias": Source(tuple(f"{name}.bias" for name in tensors), (out,))}


def _norm(path: str, tensor: str, width: int) -> dict[str, Source]:
    return {f"{path}/scale": Source((f"{tensor}.weight",), (width,)),
            f"{path}/bias": Source((f"{tensor}.bias",), (width,))}


def encode(about: Architecture, params: Params, tokens: jax.Array,
           lengths: jax.Array) -> jax.Array:
    """Tokens int32 `[B, L]`, of which the first `lengths` `[B]` are a text's -> `[B, L, c]`.

    In the type of the words' table; what stands behind a text's end is nothing that may be used.
    """
    (batch, length), width = tokens.shape, about.width
    places = about.first_position + jnp.arange(length)
    fixed = params["positions"][places].astype(jnp.float32) + params["types"][0]  # [L, c]
    x = (params["words"][tokens] + fixed).astype(params["words"].dtype).reshape(-1, width)
    x = layer_norm(params, "norm", x, about.epsilon)
    for number in range(about.layers):
        path = f"blocks/{number}"
        qkv = dense(params, f"{path}/qkv", x).reshape(batch, length, -1)
        mixed = self_attention(qkv, lengths, about.heads, causal=False).reshape(-1, width)
        x = layer_norm(params, f"{path}/norm_attention",
                       x + dense(params, f"{path}/project", mixed), about.epsilon)
        x = layer_norm(params, f"{path}/norm_mlp",
                       x + feed_forward(params, path, x, about.activation), about.epsilon)
    return x.reshape(batch, length, width)
