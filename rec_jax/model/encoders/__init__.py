"""Encoders: item vectors `[B, L, d]` -> queries `[B, L, d]`.

One file an encoder. Each holds a frozen `Config` whose `build` returns a `flax.nnx` module;
`ENCODERS` is the one line that names it.
"""

from rec_jax.model.encoders.base import EncoderConfig, Inputs, uses_times, uses_users

ENCODERS = {
    "hstu": "rec_jax.model.encoders.hstu",
    "transformer": "rec_jax.model.encoders.transformer",
}

__all__ = ["ENCODERS", "EncoderConfig", "Inputs", "uses_times", "uses_users"]
