"""Items drawn from each query's softmax over the whole catalogue, without any array of it.

Of s_j + G_j with independent Gumbel noise the largest is a draw from the softmax of s, and the k
largest are k draws without replacement, in their order (Plackett-Luce; Kool et al., 2019). The
noise is a hash of seed, query and row, so it is the same however rows are cut into tiles or shards.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .compat import vary_like
from .primitives import Array, AxisName
from .rounding import mix
from .shards import align, check_arrays, place
from .topk import merge_top_k

_PAIRS, _ROWS = 1 << 20, 8192  # of a tile, at most


def sample(queries: Array, items: Array, k: int, seed: Array, *, logit_scale: float = 1.0,
           softcap: float | None = None, num_items: int | None = None,
           axis_name: AxisName | None = None) -> Array:
    """Global ids int32 `[N, k]` of different items, drawn as the top of the file says; -1 where
    there are no more.

    queries: `[N, d]`; items: `[V, d]`; seed: uint32 `[]`; the other arguments as for
    `softmax_loss`. Inside `shard_map` queries are equal on all shards of `axis_name`.

    Raises:
      ValueError: wrong shapes or types.
    """
    check_arrays("sample", queries, items, None, None, softcap)
    count, rows = queries.shape[0], items.shape[0]
    total, first = place(items, num_items, axis_name)
    size = min(max(64, min(_ROWS, _PAIRS // count) // 64 * 64), rows)
    queries, items, seed = align(queries.astype(jnp.float32), items, seed)

    def tile(step: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        begin = jnp.minimum(step * size, rows - size)
        local = begin + jnp.arange(size)
        ids = (first + local).astype(jnp.int32)
        part = jax.lax.dynamic_slice_in_dim(items, begin, size).astype(jnp.float32)
        s = logit_scale * jnp.matmul(queries, part.T, precision=jax.lax.Precision.HIGHEST)
        if softcap is not None:
            s = softcap * jnp.tanh(s / softcap)
        # The last tile begins early, and its first rows were seen before.
        fresh = (local >= step * size) & (ids < total)
        s = jnp.where(fresh, s + gumbel(seed, jnp.arange(count)[:, None], ids[None]), -jnp.inf)
        found, at = _best(s, min(k, size))
        scores = jnp.concatenate([best[0], found], axis=1)
        joined = jnp.concatenate([best[1], ids[at]], axis=1)
        kept, where = _best(scores, k)
        return kept, jnp.where(kept == -jnp.inf, -1, jnp.take_along_axis(joined, where, axis=1))

    start = (vary_like(jnp.full((count, k), -jnp.inf), items),
             vary_like(jnp.full((count, k), -1, jnp.int32), items))
    scores, ids = jax.lax.fori_loop(0, -(-rows // size), tile, start)
    return ids if axis_name is None else merge_top_k(scores, ids, k, axis_name)[1]


def gumbel(seed: Array, query: Array, row: Array) -> Array:
    """Standard Gumbel noise f32, a hash of its arguments, of the shape that they have together."""
    hashed = mix(row.astype(jnp.uint32) ^ mix(seed.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)))
    bits = mix(hashed + query.astype(jnp.uint32) * jnp.uint32(0x9E3779B1))
    # Large noise comes from small numbers, which f32 has in every size.
    small = (bits.astype(jnp.float32) + 0.5) * 2.0 ** -32
    return -jnp.log(-jnp.log1p(-jnp.minimum(small, 1 - 2.0 ** -24)))


def _best(scores: Array, k: int) -> tuple[Array, Array]:
    """The k largest of each row and their places; a maximum is far quicker than a sort."""
    if k > 1:
        values, places = jax.lax.top_k(scores, k)
        return values, places
    at = jnp.argmax(scores, axis=1)[:, None]
    return jnp.take_along_axis(scores, at, axis=1), at
