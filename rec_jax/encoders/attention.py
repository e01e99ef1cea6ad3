"""Who may look at whom, and attention of a long row in pieces.

Everything an attention needs of L x L values (scores, masks, biases) is made for a range of
queries, so that a row of 2,048 items need not hold them for all queries at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def attention_mask(of_queries: Array, of_keys: Array, places: Array, *, causal: bool) -> Array:
    """Who may look at whom: bool `[B, 1, C, L]`, true where a query may attend key j.

    of_queries: segments `[B, C]` of the queries, which stand in `places` `[C]` of the row;
    of_keys: segments `[B, L]` of the row.

    Padding attends padding only, so that no row is empty and no softmax is 0/0.
    """
    same = of_queries[:, :, None] == of_keys[:, None, :]
    if causal:
        same &= places[:, None] >= jnp.arange(of_keys.shape[1])[None, :]
    return same[:, None]


def by_queries(attend: Callable[[Any, Array], Array], queries: Any, size: int) -> Array:
    """`attend(queries, places)` of a row of at most `size` places, or of one piece after another.

    queries: arrays `[B, L, ...]`, in any structure; `attend` gets `[B, C, ...]` of them with
    their int32 places `[C]` in the row, and gives `[B, C, ...]`. The last piece may end in
    places behind the row. The backward pass makes each piece again (Rabe & Staats, 2021), so
    that L x L values exist in neither direction.
    """
    length = jax.tree.leaves(queries)[0].shape[1]
    if length <= size:
        return attend(queries, jnp.arange(length))
    pieces = -(-length // size)

    def cut(array: Array) -> Array:  # [B, L, ...] -> [pieces, B, size, ...]
        spare = [(0, 0), (0, pieces * size - length)] + [(0, 0)] * (array.ndim - 2)
        parts = jnp.pad(array, spare).reshape(array.shape[0], pieces, size, *array.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    again = jax.checkpoint(attend)
    places = jnp.arange(pieces * size).reshape(pieces, size)
    found = jax.lax.map(lambda each: again(*each), (jax.tree.map(cut, queries), places))
    joined = jnp.moveaxis(found, 0, 1)  # [B, pieces, size, ...]
    return joined.reshape(joined.shape[0], pieces * size, *joined.shape[3:])[:, :length]
