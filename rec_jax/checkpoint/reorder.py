"""Rows of a checkpoint in another order than that of the file, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rec_jax.checkpoint.read import Source, blocks

BAND_BYTES = 2**30
"""Rows that `ordered_blocks` collects at once, at most; it reads the file once for each such band,
or less of it where the rows of a band lie together."""


def lay_rows(whole: jax.Array, source: Source, places: np.ndarray) -> jax.Array:
    """`whole` with row r of `source` at `places[r]`, for every r that has a place; donates `whole`.

    places: int `[n]`, distinct, -1 where a row has none.
    """
    lay = jax.jit(_scatter_into(whole.sharding), out_shardings=whole.sharding, donate_argnums=0)
    total = whole.shape[0]
    for first, values in blocks(source, 0, min(source.shape[0], len(places))):
        part = places[first:first + len(values)]
        # A row without a place gets one behind the end, where nothing is written.
        whole = lay(whole, np.where(part < 0, total, part).astype(np.int32), values)
        whole.block_until_ready()
    return whole


def ordered_blocks(source: Source, total: int, rows_of: Callable[[np.ndarray], np.ndarray], *,
                   size: int, band_bytes: int = BAND_BYTES) -> Iterator[np.ndarray]:
    """Rows `rows_of(0)`, `rows_of(1)`, ... `rows_of(total - 1)` of `source`, in blocks of `size`.

    rows_of: int64 `[n]` -> int64 `[n]`, distinct. Host memory: a band and a block of the file.
    """
    row_bytes = max(1, int(np.prod(source.shape[1:], dtype=np.int64)) * source.dtype.itemsize)
    band = max(size, band_bytes // row_bytes)
    for first in range(0, total, band):
        rows = rows_of(np.arange(first, min(first + band, total)))
        yield from _cut(_collect(source, rows), size)


def _collect(source: Source, rows: np.ndarray) -> np.ndarray:
    """`source[rows]`, each block of the file read once."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    found = np.empty((len(rows), *source.shape[1:]), source.dtype)
    for number in np.unique(ascending // source.block).tolist():
        low, high = number * source.block, min((number + 1) * source.block, source.shape[0])
        begin, end = np.searchsorted(ascending, (low, high))
        found[order[begin:end]] = source.read(low, high)[ascending[begin:end] - low]
    return found


def _cut(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    yield from (rows[first:first + size] for first in range(0, len(rows), size))


def _scatter_into(sharding: jax.sharding.Sharding) -> Callable[..., jax.Array]:
    """Writes `values` `[n, ...]` at rows `places`; each device takes what falls into its rows.

    XLA itself would bring all rows to every device for a scatter into rows that are cut.
    """
    def scatter(whole: jax.Array, places: Any, values: Any) -> jax.Array:
        return whole.at[places].set(values.astype(whole.dtype), mode="drop")

    if not isinstance(sharding, NamedSharding) or not sharding.spec or sharding.spec[0] is None:
        return scatter
    axes = sharding.spec[0]

    def part(whole: jax.Array, places: Any, values: Any) -> jax.Array:
        first = jax.lax.axis_index(axes) * whole.shape[0]
        # A negative place would count from the end.
        here = (places >= first) & (places < first + whole.shape[0])
        return scatter(whole, jnp.where(here, places - first, whole.shape[0]), values)

    return jax.shard_map(part, mesh=sharding.mesh, in_specs=(sharding.spec, P(), P()),
                         out_specs=sharding.spec, check_vma=False)
