"""GPT-2 (Radford et al., 2019): a causal encoder, whose last token has seen the whole text.

A token's vector is the sum of the rows of its word and its place. Then every block, with LN the
layer norm, adds what it makes of the normalised stream (pre-norm):

    x = x + A(LN(x)) W_o + b_o,    x = x + f(LN(x) W_1 + b_1) W_2 + b_2

A is attention of a token to those up to itself. The stream is normalised at the end.
"""

from __future__ import annotations

import jax

from rec_jax.text.architecture import Architecture
from rec_jax.text.layers import Params, dense, feed_forward, layer_norm, self_attention
from rec_jax.text.weights import Source

PREFIXES = ("", "transformer.", "0.auto_model.")


def sources(about: Architecture) -> dict[str, Source]:
    """Parameters by path, and the tensors of a file that they are made of."""
    width, hidden = about.width, about.hidden
    found = {"words": Source(("wte.weight",), (about.tokens, width)),
             "positions": Source(("wpe.weight",), (about.positions, width))}
    for number in range(about.layers):
        path, layer = f"blocks/{number}", f"h.{number}"
        found |= _affine(f"{path}/norm_attention", f"{layer}.ln_1", "scale", (width,))
        found |= _affine(f"{path}/qkv", f"{layer}.attn.c_attn", "kernel", (width, 3 * width))
        found |= _affine(f"{path}/project", f"{layer}.attn.c_proj", "kernel", (width, width))
        found |= _affine(f"{path}/norm_mlp", f"{layer}.ln_2", "scale", (width,))
        found |= _affine(f"{path}/up", f"{layer}.mlp.c_fc", "kernel", (width, hidden))
        found |= _affine(f"{path}/down", f"{layer}.mlp.c_proj", "kernel", (hidden, width))
    return found | _affine("norm", "ln_f", "scale", (width,))


def _affine(path: str, tensor: str, weight: str, shape: tuple[int, ...]) -> dict[str, Source]:
    return {f"{path}/{weight}": Source((f"{tensor}.weight",), shape),
            f"{path}/bias": Source((f"{tensor}.bias",), shape[-1:])}


def encode(about: Architecture, params: Params, tokens: jax.Array,
           lengths: jax.Array) -> jax.Array:
    """Tokens int32 `[B, L]`, of which the first `lengths` `[B]` are a text's -> `[B, L, c]`.

    In the type of the words' table; what stands behind a text's end is nothing that may be used.
    """
    (batch, length), width = tokens.shape, about.width
    x = (params["words"][tokens] + params["positions"][:length]).reshape(-1, width)
    for number in range(about.layers):
        path = f"blocks/{number}"
        normed = layer_norm(params, f"{path}/norm_attention", x, about.epsilon)
        qkv = dense(params, f"{path}/qkv", normed).reshape(batch, length, -1)
        mixed = self_attention(qkv, lengths, about.heads, causal=True).reshape(-1, width)
        x = x + dense(params, f"{path}/project", mixed)
        normed = layer_norm(params, f"{path}/norm_mlp", x, about.epsilon)
        x = x + feed_forward(params, path, normed, about.activation)
    return layer_norm(params, "norm", x, about.epsilon).reshape(batch, length, width)
