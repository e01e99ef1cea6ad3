"""Encoders: item vectors `[B, L, d]` -> queries `[B, L, d]`.

One file an encoder. Each holds a frozen `Config` whose `build` returns a `flax.nnx` module;
`ENCODERS` is the one line that names it.
"""

from rec_jax.model.encoders.base import (
    EncoderConfig,
    Inputs,
    carries_begin,
    derives_vectors,
    graph_layers,
    reads_history,
    sampling_of,
    unit_vectors,
    uses_times,
    uses_users,
)

ENCODERS = {
    "bag": "rec_jax.model.encoders.bag",
    "graphsage": "rec_jax.model.encoders.graphsage",
    "hstu": "rec_jax.model.encoders.hstu",
    "lightgcn": "rec_jax.model.encoders.lightgcn",
    "svdpp": "rec_jax.model.encoders.svdpp",
    "transformer": "rec_jax.model.encoders.transformer",
    "user": "rec_jax.model.encoders.user",
}

__all__ = ["ENCODERS", "EncoderConfig", "Inputs", "carries_begin", "derives_vectors",
           "graph_layers", "reads_history", "sampling_of", "unit_vectors", "uses_times",
           "uses_users"]
