"""A kernel backend in one file: exact ranks by the whole matrix of scores, for small tables.

A backend is a value: a name, why it refuses a problem (or None), and a function for each fold that
it has; `rec_jax.kernels.primitives` says what each fold promises. `backend=` of any operation of
`rec_jax.kernels` takes the value in the place of a name.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rec_jax.kernels import Backend, Problem
from rec_jax.kernels.primitives import Excluded, Scores

Array = jax.Array

MOST_SCORES = 10**7


def refuses(problem: Problem) -> str | None:
    """More scores than should be in memory at once."""
    count = problem.num_queries * problem.num_rows
    return None if count <= MOST_SCORES else f"{count} scores are more than {MOST_SCORES}"


def label_scores(queries: Array, items: Array, targets: Array, scores: Scores) -> Array:
    """See `primitives.LabelScores`."""
    place = targets - scores.row_offset
    here = (place >= 0) & (place < items.shape[0])
    found = jnp.take_along_axis(_matrix(queries, items, scores),
                                jnp.where(here, place, 0)[:, None], axis=1)[:, 0]
    return jnp.where(here, found, -jnp.inf)


def rank_count(queries: Array, items: Array, s_y: Array, excluded: Excluded,
               scores: Scores) -> Array:
    """See `primitives.RankCount`."""
    matrix = _matrix(queries, items, scores)
    rows = jnp.arange(items.shape[0], dtype=jnp.int32)
    place = excluded.item - scores.row_offset
    here = (place >= 0) & (place < items.shape[0])
    # A pair of another shard goes past the end, where nothing is written.
    out = jnp.zeros(matrix.shape, bool).at[
        excluded.query, jnp.where(here, place, items.shape[0])].set(True, mode="drop")
    counts = ~(matrix < s_y[:, None]) & ~out & scores.is_item(rows)
    return jnp.sum(counts, axis=1, dtype=jnp.int32)


def _matrix(queries: Array, items: Array, scores: Scores) -> Array:
    """f32 `[N, V]`."""
    found = scores.scale * jnp.matmul(queries.astype(jnp.float32), items.astype(jnp.float32).T,
                                      precision=jax.lax.Precision.HIGHEST)
    if scores.bias is not None:
        found = found + scores.bias
    return found if scores.softcap is None else scores.softcap * jnp.tanh(found / scores.softcap)


BACKEND = Backend("plain_rank", refuses, label_scores=label_scores, rank_count=rank_count)
