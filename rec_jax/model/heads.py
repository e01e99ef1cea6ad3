"""Heads: further queries of a place, each a linear map of the encoder's, learned beside it.

    h_name = h A_name,    A_name: [d, d]

An objective that answers two questions at once (what comes next, and what it is worth) scores the
same rows by two queries. Parameters are `heads/NAME` among the encoder's, so that optax, the
average and checkpoints know nothing of them. What ranks and recommends reads h, or the head that an
objective names (`Needs.ranks`).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rec_jax import streams

FOLDER = "heads/"


def init_heads(names: Sequence[str], dim: int, seed: int) -> dict[str, jax.Array]:
    """Matrices f32 `[d, d]` by path, drawn from `seed`, that keep the size of a query."""
    key = streams.of_run(seed, streams.HEADS)
    return {FOLDER + name: dim ** -0.5 * jax.random.normal(
        jax.random.fold_in(key, number), (dim, dim)) for number, name in enumerate(sorted(names))}


def apply_head(params: dict[str, jax.Array], name: str, queries: jax.Array) -> jax.Array:
    """Queries `[..., d]` of the head `name`, in the type of `queries`."""
    mapped = jnp.matmul(queries.astype(jnp.float32), params[FOLDER + name],
                        precision=jax.lax.Precision.HIGHEST)
    return mapped.astype(queries.dtype)
