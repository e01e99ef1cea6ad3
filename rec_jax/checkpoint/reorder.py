"""Rows of a checkpoint in another order than that of the file, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rec_jax.checkpoint.array_source import ArraySource, read_blocks
from rec_jax.checkpoint.layout import row_nbytes

BAND_BYTES = 2**30
"""Most bytes of rows that `ordered_blocks` collects at once. It reads the file once for each such
band, or less of it where the rows of a band lie together."""


def scatter_rows(whole: jax.Array, source: ArraySource, places: np.ndarray) -> jax.Array:
    """Write row r of `source` to row `places[r]` of `whole`, which is donated, and return it.

    places: int `[n]`, distinct, -1 where a row has none.
    """
    scatter = jax.jit(_scatter_into(whole.sharding), out_shardings=whole.sharding, donate_argnums=0)
    total = whole.shape[0]
    for first, values in read_blocks(source, 0, min(source.shape[0], len(places))):
        part = places[first:first + len(values)]
        # A row without a place gets one behind the end, where nothing is written.
        whole = scatter(whole, np.where(part < 0, total, part).astype(np.int32), values)
        whole.block_until_ready()
    return whole


def ordered_blocks(source: ArraySource, total: int, rows_of: Callable[[np.ndarray], np.ndarray], *,
                   size: int, band_bytes: int = BAND_BYTES) -> Iterator[np.ndarray]:
    """Rows `rows_of(0)`, `rows_of(1)`, ... `rows_of(total - 1)` of `source`, in blocks of `size`.

    rows_of: int64 `[n]` -> int64 `[n]`, distinct. Host memory: a band and a block of the file.
    """
    band = max(size, band_bytes // row_nbytes(source.shape, source.dtype))
    for first in range(0, total, band):
        rows = rows_of(np.arange(first, min(first + band, total)))
        yield from _split_rows(_collect(source, rows), size)


def _collect(source: ArraySource, rows: np.ndarray) -> np.ndarray:
    """`source[rows]`, each block of the file read once."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    found = np.empty((len(rows), *source.shape[1:]), source.dtype)
    for number in np.unique(ascending // source.block).tolist():
        low, high = number * source.block, min((number + 1) * source.block, source.shape[0])
        begin, end = np.searchsorted(ascending, (low, high))
        found[order[begin:end]] = source.read(low, high)[ascending[begin:end] - low]
    return found


def _split_rows(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    yield from (rows[first:first + size] for first in range(0, len(rows), size))


def _scatter_into(sharding: jax.sharding.Sharding) -> Callable[..., jax.Array]:
    """A function that writes `values` `[n, ...]` at rows `places`; each device takes its own rows.

    For a scatter into sharded rows, XLA itself would bring all rows to every device.
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
